"""Submits many tasks in one request and sums up what they printed, as they end.

On a machine with an agent it needs neither OCTASKLY_URL nor OCTASKLY_TOKEN.
"""

import octaskly

COUNT = 500

with octaskly.Client() as mesh:
    # It is one submission, also where it has to be sent twice, and all or nothing.
    accepted = mesh.submit_many(f"expr {n} '*' {n}" for n in range(1, COUNT))
    total = 0
    for task in mesh.as_ended(accepted, deadline_s=60):
        if task.status != "completed":
            raise SystemExit(f"{task.id} is {task.status}: {task.stderr}")
        total += int(task.stdout or "0")
    print(f"{len(accepted)} tasks, sum of squares {total}")
