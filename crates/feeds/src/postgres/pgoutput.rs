use bytes::{Buf, Bytes};

use super::position::Lsn;

/// A message of PostgreSQL's plugin `pgoutput`, version 1 of its protocol.
/// See <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.
#[derive(Debug)]
pub(crate) enum Message {
    /// A transaction begins: one that is committed, by the record at `lsn`.
    Begin {
        lsn: Lsn,
        committed_at: i64,
        xid: u32,
    },
    /// It ends; `end` is behind its commit's record.
    Commit {
        lsn: Lsn,
        end: Lsn,
    },
    /// How a table looks from here on.
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        old: Option<Old>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: Old,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// An origin, a type's name, a message that an application wrote into the log.
    Other,
}

/// A table as a message describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) id: u32,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationColumn {
    /// Whether it is part of the replica identity.
    pub(crate) key: bool,
    pub(crate) name: String,
    pub(crate) type_oid: u32,
}

/// What is known of a row before its change.
#[derive(Debug)]
pub(crate) enum Old {
    /// The columns of the replica identity; the others are null here, whatever they were.
    Key(Tuple),
    /// The row.
    Row(Tuple),
}

#[derive(Debug)]
pub(crate) struct Tuple(pub(crate) Vec<Field>);

#[derive(Debug)]
pub(crate) enum Field {
    Null,
    /// A long value that is stored aside, was not changed and is not in the log.
    Unchanged,
    Text(Bytes),
}

/// What a message lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

type Decoded<T> = Result<T, Malformed>;

impl Message {
    pub(crate) fn decode(mut message: Bytes) -> Decoded<Self> {
        let kind = byte(&mut message)?;
        match kind {
            b'B' => Ok(Self::Begin {
                lsn: Lsn(message.try_get_u64().map_err(|_| Malformed)?),
                committed_at: message.try_get_i64().map_err(|_| Malformed)?,
                xid: int(&mut message)?,
            }),
            b'C' => {
                byte(&mut message)?;
                Ok(Self::Commit {
                    lsn: Lsn(message.try_get_u64().map_err(|_| Malformed)?),
                    end: Lsn(message.try_get_u64().map_err(|_| Malformed)?),
                })
            }
            b'R' => relation(&mut message).map(Self::Relation),
            b'I' => {
                let relation = int(&mut message)?;
                if byte(&mut message)? == b'N' {
                    Ok(Self::Insert { relation, new: tuple(&mut message)? })
                } else {
                    Err(Malformed)
                }
            }
            b'U' => {
                let relation = int(&mut message)?;
                let mut kind = byte(&mut message)?;
                let mut before = None;
                if kind != b'N' {
                    before = Some(old(kind, &mut message)?);
                    kind = byte(&mut message)?;
                }
                if kind != b'N' {
                    return Err(Malformed);
                }
                Ok(Self::Update { relation, old: before, new: tuple(&mut message)? })
            }
            b'D' => {
                let relation = int(&mut message)?;
                let kind = byte(&mut message)?;
                Ok(Self::Delete { relation, old: old(kind, &mut message)? })
            }
            b'T' => {
                let count = int(&mut message)?;
                byte(&mut message)?;
                let relations = (0..count).map(|_| int(&mut message)).collect::<Decoded<_>>()?;
                Ok(Self::Truncate { relations })
            }
            b'O' | b'Y' | b'M' => Ok(Self::Other),
            _ => Err(Malformed),
        }
    }
}

fn byte(message: &mut Bytes) -> Decoded<u8> {
    message.try_get_u8().map_err(|_| Malformed)
}

fn int(message: &mut Bytes) -> Decoded<u32> {
    message.try_get_u32().map_err(|_| Malformed)
}

fn name(message: &mut Bytes) -> Decoded<String> {
    let end = message.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
    let name = std::str::from_utf8(&message[..end]).map_err(|_| Malformed)?.to_owned();
    message.advance(end + 1);
    Ok(name)
}

fn relation(message: &mut Bytes) -> Decoded<Relation> {
    let id = int(message)?;
    let schema = name(message)?;
    // Nothing stands for pg_catalog.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    let table = name(message)?;
    byte(message)?;
    let count = message.try_get_u16().map_err(|_| Malformed)?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let key = byte(message)? & 1 == 1;
        let name = name(message)?;
        let type_oid = int(message)?;
        int(message)?;
        columns.push(RelationColumn { key, name, type_oid });
    }
    Ok(Relation { id, schema, table, columns })
}

fn old(kind: u8, message: &mut Bytes) -> Decoded<Old> {
    match kind {
        b'K' => tuple(message).map(Old::Key),
        b'O' => tuple(message).map(Old::Row),
        _ => Err(Malformed),
    }
}

fn tuple(message: &mut Bytes) -> Decoded<Tuple> {
    let count = message.try_get_u16().map_err(|_| Malformed)?;
    let mut fields = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        fields.push(match byte(message)? {
            b'n' => Field::Null,
            b'u' => Field::Unchanged,
            b't' => {
                let length = usize::try_from(int(message)?).map_err(|_| Malformed)?;
                if message.len() < length {
                    return Err(Malformed);
                }
                Field::Text(message.split_to(length))
            }
            _ => return Err(Malformed),
        });
    }
    Ok(Tuple(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_anywhere_is_refused() {
        let mut update = b"U\0\0\0\x07K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u".to_vec();
        let Message::Update { relation: 7, old: Some(Old::Key(old)), new } =
            Message::decode(Bytes::from(update.clone())).unwrap()
        else {
            panic!("an update")
        };
        assert!(matches!(&old.0[..], [Field::Text(text), Field::Null] if text == "1"));
        assert!(matches!(&new.0[..], [Field::Text(text), Field::Unchanged] if text == "2"));
        while update.pop().is_some() {
            assert!(Message::decode(Bytes::from(update.clone())).is_err(), "{update:?}");
        }
        let relation = b"R\0\0\0\x07shop\0orders\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff";
        let Message::Relation(relation) = Message::decode(Bytes::from_static(relation)).unwrap() else {
            panic!("a relation")
        };
        assert_eq!((relation.schema.as_str(), relation.table.as_str()), ("shop", "orders"));
        assert_eq!(relation.columns, [RelationColumn { key: true, name: "id".to_owned(), type_oid: 23 }]);
    }
}
