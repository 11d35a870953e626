"""Checks of a journal that several tests make: fields that the schema does not explain."""

from sleep_rl.journal.schema import METRICS


def undocumented(records):
    """Names `kind.field` that METRICS does not explain."""
    return sorted(
        {
            f"{r['kind']}.{name}"
            for r in records
            for name in r.keys() - METRICS.get(r["kind"], {}).keys() - {"t", "kind", "nonfinite"}
        }
    )
