"""One run: a `RunConfig` goes in, a `RunResult` (one `metrics.h5`) comes out."""
