import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // The end-to-end tests start real daemons whose stages compute; two cores serve two files at a time.
    maxWorkers: 2,
    // A process of its own for every file would cost a tenth of the whole. Files share nothing but modules without state.
    isolate: false,
    // The program sets this for itself; some tests load ONNX Runtime without the program.
    env: { ORT_DISABLE_TELEMETRY: '1' },
    // TensorFlow.js's derivatives are modules without file endings, which Node itself does not find.
    server: { deps: { inline: [/tfjs-core\/dist\/(?!tf-core)/] } },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
