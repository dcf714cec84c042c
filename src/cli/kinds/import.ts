// How an `import` job is printed: like a `create` job, because the result of both is a new model.

import { formatCreated } from './create.ts';
import { documentKind } from './kind.ts';

export const importKind = documentKind(formatCreated);
