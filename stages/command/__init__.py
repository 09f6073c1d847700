"""The `ccd` command: what people do with the pipeline beside `dvc repro`."""
