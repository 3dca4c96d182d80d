"""The messages of FlightSql.proto, and those of Flight.proto that no Python package has, as protobuf classes.

They are described here by hand, field by field, so that the suite needs neither protoc nor the .proto files.
"""

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

SQL = "arrow.flight.protocol.sql"
FLIGHT = "conformance.flight"
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "sfixed64": _Field.TYPE_SFIXED64,
    "double": _Field.TYPE_DOUBLE,
}

# Fields are (number, type, name); `?` is optional, `[]` repeated.
_SQL_MESSAGES = {
    "CommandGetSqlInfo": [(1, "uint32[]", "info")],
    "CommandGetXdbcTypeInfo": [(1, "int32?", "data_type")],
    "CommandGetCatalogs": [],
    "CommandGetDbSchemas": [(1, "string?", "catalog"), (2, "string?", "db_schema_filter_pattern")],
    "CommandGetTables": [
        (1, "string?", "catalog"),
        (2, "string?", "db_schema_filter_pattern"),
        (3, "string?", "table_name_filter_pattern"),
        (4, "string[]", "table_types"),
        (5, "bool", "include_schema"),
    ],
    "CommandGetTableTypes": [],
    "CommandGetPrimaryKeys": [(1, "string?", "catalog"), (2, "string?", "db_schema"), (3, "string", "table")],
    "CommandGetExportedKeys": [(1, "string?", "catalog"), (2, "string?", "db_schema"), (3, "string", "table")],
    "CommandGetImportedKeys": [(1, "string?", "catalog"), (2, "string?", "db_schema"), (3, "string", "table")],
    "CommandGetCrossReference": [
        (1, "string?", "pk_catalog"),
        (2, "string?", "pk_db_schema"),
        (3, "string", "pk_table"),
        (4, "string?", "fk_catalog"),
        (5, "string?", "fk_db_schema"),
        (6, "string", "fk_table"),
    ],
    "CommandStatementQuery": [(1, "string", "query"), (2, "bytes?", "transaction_id")],
    "CommandStatementUpdate": [(1, "string", "query"), (2, "bytes?", "transaction_id")],
    "CommandPreparedStatementQuery": [(1, "bytes", "prepared_statement_handle")],
    "CommandPreparedStatementUpdate": [(1, "bytes", "prepared_statement_handle")],
    "DoPutPreparedStatementResult": [(1, "bytes?", "prepared_statement_handle")],
    "ActionCreatePreparedStatementRequest": [(1, "string", "query"), (2, "bytes?", "transaction_id")],
    "ActionCreatePreparedStatementResult": [
        (1, "bytes", "prepared_statement_handle"),
        (2, "bytes", "dataset_schema"),
        (3, "bytes", "parameter_schema"),
    ],
    "ActionClosePreparedStatementRequest": [(1, "bytes", "prepared_statement_handle")],
    "ActionBeginTransactionRequest": [],
    "ActionBeginTransactionResult": [(1, "bytes", "transaction_id")],
    "ActionEndTransactionRequest": [(1, "bytes", "transaction_id"), (2, "int32", "action")],
    "ActionCancelQueryRequest": [(1, "bytes", "info")],
    "ActionCancelQueryResult": [(1, "int32", "result")],
}
# Wire-compatible: an enum travels as an int32, and a message as bytes.
_FLIGHT_MESSAGES = {
    "CancelFlightInfoRequest": [(1, "bytes", "info")],
    "CancelFlightInfoResult": [(1, "int32", "status")],
    "RenewFlightEndpointRequest": [(1, "bytes", "endpoint")],
    "SessionOptionValue": [
        (1, "string?", "string_value"),
        (2, "bool?", "bool_value"),
        (3, "sfixed64?", "int64_value"),
        (4, "double?", "double_value"),
    ],
    # Of a map, each entry is a message of key and value.
    "SetSessionOptionsRequest": [(1, "OptionEntry[]", "session_options")],
    "OptionEntry": [(1, "string", "key"), (2, "SessionOptionValue", "value")],
    "SetSessionOptionsResult": [(1, "ErrorEntry[]", "errors")],
    "ErrorEntry": [(1, "string", "key"), (2, "OptionError", "value")],
    "OptionError": [(1, "int32", "value")],
    "GetSessionOptionsRequest": [],
    "GetSessionOptionsResult": [(1, "OptionEntry[]", "session_options")],
    "CloseSessionRequest": [],
    "CloseSessionResult": [(1, "int32", "status")],
}


def _file(package, name, messages):
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for number, kind, field in fields:
            bare = kind.rstrip("?").removesuffix("[]")
            added = described.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
            if kind.endswith("[]"):
                added.label = _Field.LABEL_REPEATED
            if bare in _TYPES:
                added.type = _TYPES[bare]
            else:
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{package}.{bare}"
            if kind.endswith("?"):
                # Proto3 marks presence by a oneof of one field.
                added.proto3_optional = True
                added.oneof_index = len(described.oneof_decl)
                described.oneof_decl.add(name=f"_{field}")
    return file


# A pool of its own: another package may have the real ones.
_pool = descriptor_pool.DescriptorPool()
for _package, _name, _messages in [
    (SQL, "conformance_flight_sql.proto", _SQL_MESSAGES),
    (FLIGHT, "conformance_flight.proto", _FLIGHT_MESSAGES),
]:
    _pool.Add(_file(_package, _name, _messages)) if hasattr(_pool, "Add") else _pool.AddSerializedFile(
        _file(_package, _name, _messages).SerializeToString()
    )
    for _message in _messages:
        _class = message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_package}.{_message}"))
        globals()[_message] = _class


def packed(message):
    """The message in google.protobuf.Any, as Flight SQL sends commands and most bodies of actions."""
    any_message = any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
    any_message.value = message.SerializeToString()
    return any_message.SerializeToString()


def unpacked(kind, data):
    """The message of this kind in the google.protobuf.Any of the bytes."""
    any_message = any_pb2.Any.FromString(bytes(data))
    name = any_message.type_url.rsplit("/", 1)[-1]
    assert name == kind.DESCRIPTOR.full_name, f"expected {kind.DESCRIPTOR.full_name}, and got {name}"
    return kind.FromString(any_message.value)
