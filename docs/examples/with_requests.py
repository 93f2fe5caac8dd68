"""Submits a task with the library requests, waits for its end, and prints it.

OCTASKLY_TOKEN=$(octaskly token create --role client) python with_requests.py
"""

import os

import requests

base_url = os.environ.get("OCTASKLY_URL", "http://localhost:3000")
token = os.environ["OCTASKLY_TOKEN"]
headers = {"Authorization": f"Bearer {token}"}

# Create task
task_data = {"command": "echo hello", "timeout": 3600}
response = requests.post(
    f"{base_url}/api/v1/tasks", json=task_data, headers=headers, timeout=30
)
response.raise_for_status()
task_id = response.json()["id"]

# Get task status; `wait` answers when it has ended
response = requests.get(
    f"{base_url}/api/v1/tasks/{task_id}?wait=60", headers=headers, timeout=90
)
response.raise_for_status()
print(response.json())
