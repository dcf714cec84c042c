// Imported before anything that loads ONNX Runtime: a benchmark makes no reports of its own to the library's maker either.

process.env['ORT_DISABLE_TELEMETRY'] ??= '1';
