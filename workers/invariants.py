"""What must be true at all times, as read-only queries: after every drill, and every night in production.

Each returns the rows that break it; an empty list is health.
"""

from sqlalchemy import text
from sqlalchemy.orm import Session

QUERIES = {
    "a run has stored one checkpoint at most": """
        SELECT run_id FROM checkpoints WHERE run_id IS NOT NULL GROUP BY run_id HAVING count(*) > 1""",
    "a running run's lease has not run out long ago": """
        SELECT id FROM runs WHERE state = 'running' AND lease_until < clock_timestamp() - interval '10 minutes'""",
    "a queued run is rung for again and again": """
        SELECT id FROM runs WHERE state = 'queued' AND rung_at < clock_timestamp() - interval '10 minutes'""",
    "a comparison has no more answers that count than its overlap": """
        SELECT c.id FROM comparisons c JOIN annotations a ON a.comparison_id = c.id
        WHERE a.superseded_at IS NULL AND NOT a.surplus
        GROUP BY c.id, c.overlap HAVING count(*) > c.overlap""",
    "a comparison's free slots, leases and answers add up to its overlap": """
        SELECT c.id FROM comparisons c
        WHERE c.open_slots + (
            SELECT count(*) FROM assignments s
            LEFT JOIN annotations a ON a.assignment_id = s.id AND a.superseded_at IS NULL
            WHERE s.comparison_id = c.id
              AND (s.state = 'leased' OR (s.state = 'submitted' AND NOT coalesce(a.surplus, false)))
        ) <> c.overlap""",
    "every submitted assignment has a current answer": """
        SELECT s.id FROM assignments s WHERE s.state = 'submitted' AND NOT EXISTS (
            SELECT 1 FROM annotations a WHERE a.assignment_id = s.id AND a.superseded_at IS NULL)""",
    "an answer, its assignment and its comparison are of one campaign and one annotator": """
        SELECT a.id FROM annotations a JOIN assignments s ON s.id = a.assignment_id
        WHERE (a.campaign_id, a.comparison_id, a.annotator_id) <> (s.campaign_id, s.comparison_id, s.annotator_id)""",
    "a promoted policy is never missing": """
        SELECT c.id FROM campaigns c WHERE c.policy_id IS NULL AND c.initial_policy_id IS NOT NULL""",
}


def broken(session: Session) -> dict[str, list[str]]:
    """The invariants that do not hold, with the ids of the rows that break them."""
    found = {name: [str(i) for i in session.scalars(text(query))] for name, query in QUERIES.items()}
    return {name: rows for name, rows in found.items() if rows}
