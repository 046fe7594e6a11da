"""Results -> points -> laws -> report: what the runs measured, as scaling laws with honest intervals."""
