// What OpenAI's clients ask for over HTTP: completions, and models in OpenAI's words.

import { GptdError } from '../../../model/errors.ts';
import { METHODS, type Handlers } from '../../protocol/methods.ts';
import type { ModelRecord } from '../../protocol/models.ts';
import { replyJson, type HttpRoutes } from '../exchange.ts';
import { complete, type CompletionParts } from './completions.ts';

export interface OpenaiParts extends CompletionParts {
  readonly handlers: CompletionParts['handlers'] & Pick<Handlers, 'model.list' | 'model.get'>;
}

export function openaiRoutes(parts: OpenaiParts): HttpRoutes {
  const { handlers } = parts;
  return async ({ method, pathname }, exchange) => {
    const { response } = exchange;
    const reading = method === 'GET' || method === 'HEAD';
    if (pathname === '/v1/models' && reading) {
      const { models } = await handlers['model.list']({});
      replyJson(response, 200, { object: 'list', data: models.map((model) => openaiModel(model, model.name)) });
    } else if (pathname.startsWith('/v1/models/') && reading) {
      const asked = METHODS['model.get'].safeParse({ model: decoded(pathname.slice('/v1/models/'.length)) });
      if (!asked.success) throw new GptdError('not_found', `There is no model at ${pathname}.`);
      const model = await handlers['model.get'](asked.data);
      replyJson(response, 200, openaiModel(model, asked.data.model));
    } else if (pathname === '/v1/completions' && method === 'POST') {
      await complete(parts, exchange);
    } else {
      return 'not mine';
    }
    return 'answered';
  };
}

/** A segment of a path as it was meant; as it is when it was badly encoded. */
function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

const openaiModel = ({ createdAt }: ModelRecord, id: string): object => ({
  id,
  object: 'model',
  created: Math.floor(createdAt / 1000),
  owned_by: 'gptd',
});
