import eslint from '@eslint/js';
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig(
  { ignores: ['dist/', 'node_modules/'] },
  eslint.configs.recommended,
  tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ['eslint.config.js'] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      // Numbers belong in messages: "Cannot split 12 blocks into 16 stages".
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      // Typed arrays are indexed inside checked bounds everywhere in the numerics.
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      // An arrow function may end in a call that returns nothing: `() => close()` is as clear without braces.
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
    },
  },
  {
    // Scripts run before anything is installed or built, and benchmarks use what is built. Both are plain JavaScript outside the
    // compiler's project.
    files: [
      'scripts/*.js',
      'bench/*.js',
      'bench/peer/*.js',
      'test/interop/*.js',
      'test/chaos/*.js',
      'test/daemon/threads/*.js',
    ],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      parserOptions: { projectService: false },
      globals: {
        console: 'readonly',
        URL: 'readonly',
        performance: 'readonly',
        process: 'readonly',
        setInterval: 'readonly',
        clearInterval: 'readonly',
        setTimeout: 'readonly',
        clearTimeout: 'readonly',
      },
    },
  },
  {
    // These files are loaded into a daemon before any module, so they are CommonJS.
    files: ['test/chaos/*.cjs', 'bench/*.cjs'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      sourceType: 'commonjs',
      parserOptions: { projectService: false },
      globals: { process: 'readonly', setImmediate: 'readonly', WebAssembly: 'writable' },
    },
    rules: { '@typescript-eslint/no-require-imports': 'off' },
  },
);
