// How an `import` job is printed: its result is a new model, like that of `create`.

import { formatCreated } from './create.ts';
import { documentKind } from './kind.ts';

export const importKind = documentKind(formatCreated);
