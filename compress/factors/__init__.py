"""The factors of an adapter as numbers: read, written, turned into other coordinates, compared, held for a cohort."""
