"""Features, training sets and scores of a Holdfast lake, over Arrow Flight.

    from holdfast import Client

    client = Client("grpc://127.0.0.1:8815")
    train = client.get_historical_features(spine, service="churn").to_pandas()
    now = client.get_online_features({"customer_id": ["c_1", "c_2"]}, service="churn").to_arrow()
    risk = client.score("churn", rows, reasons=3)

Only pyarrow is needed. A spine is an Arrow table (or anything that pyarrow.table makes one of) with the key columns and a
moment in each row; each row is answered with what was known for its key at its moment.
"""

from holdfast.client import Client, FeatureError, OnlineFeatures, OnlineNodes, Retrieval, Scoring

__all__ = ["Client", "FeatureError", "OnlineFeatures", "OnlineNodes", "Retrieval", "Scoring"]
