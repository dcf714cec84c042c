// A benchmark imports this file before anything that loads ONNX Runtime: a benchmark sends the library's maker no reports either.

process.env['ORT_DISABLE_TELEMETRY'] ??= '1';
