"""Check journals for fields that the schema does not have."""

from sleep_rl.journal.schema import METRICS


def undocumented(records):
    """Return names `kind.field` that are not in METRICS."""
    return sorted(
        {
            f"{r['kind']}.{name}"
            for r in records
            for name in r.keys() - METRICS.get(r["kind"], {}).keys() - {"t", "kind", "nonfinite"}
        }
    )
