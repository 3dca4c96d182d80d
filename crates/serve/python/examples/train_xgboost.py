"""Features as they were, with labels behind them, to a model of the lake: `python train_xgboost.py grpc://127.0.0.1:8815 2025-07-04 2025-10-02`,
in a project with the label view `bought` of docs/features.md."""

import subprocess
import sys
from datetime import datetime, timedelta, timezone

import xgboost
from holdfast import Client

client = Client(sys.argv[1])
moments = [datetime.fromisoformat(day).replace(tzinfo=timezone.utc) for day in sys.argv[2:]]

# Every customer at each moment: the features as of then, and what was bought in the 90 days behind it.
customers = client.table("features.churn_v1").to_arrow()["customer_id"].to_pylist()
spine = {"customer_id": customers * len(moments), "event_timestamp": [moment for moment in moments for _ in customers]}
made = client.create_training_set(spine, service="churn", label="bought:amount", horizon=timedelta(days=90), ignore_known_at=True)
rows = made.to_pandas().query("churn_v1__status == 'PRESENT' and purchases_90d > 0")

features = [feature["name"] for feature in client.describe("churn_v1")["view"]["features"]]
matrix = xgboost.DMatrix(rows[features].astype("float32"), label=rows["amount"].isna())
booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "eta": 0.05, "min_child_weight": 5}, matrix, 100)
booster.save_model("churn.ubj")
print(f"{made.provenance['dataset_id']}: {len(rows)} rows, {rows['amount'].isna().mean():.0%} left")

# Calibrated, and judged beside the baselines by snapshots of the lake; `holdfast models promote` makes it score.
subprocess.run(["holdfast", "models", "import", "churn", "churn.ubj"], check=True)
