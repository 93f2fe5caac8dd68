"""Submits many tasks in one request and sums up what they printed.

OCTASKLY_TOKEN=$(octaskly token create --role client) python bulk_submit.py
"""

import os
import uuid

from octaskly.client import Client, Draft

URL = os.environ.get("OCTASKLY_URL", "http://localhost:3000")
COUNT = 500

with Client.at_url(URL, token=os.environ["OCTASKLY_TOKEN"]) as client:
    drafts = [Draft(command=f"expr {n} '*' {n}", timeout=60) for n in range(1, COUNT)]
    # With a key, sending this again after a broken connection is harmless.
    accepted = client.submit(drafts, idempotency_key=str(uuid.uuid4()))
    total = 0
    for task in accepted:
        ended = client.task(task.id, wait_s=60)
        if ended.status != "completed":
            raise SystemExit(f"{task.id} is {ended.status}: {ended.stderr}")
        total += int(ended.stdout or "0")
    print(f"{len(accepted)} tasks, sum of squares {total}")
