// A recipe and the settings of a picture resolved into rounds with their timesteps, as jiidm/painter/engine.py and
// jiidm/inference/plan.py do it.

import { rint } from './numbers.js';

const PREVIEW_STEPS = 6, PREVIEW_TRANSFER = 'reinhard';

const chainOf = (round) => Number(round.respacing.replace('ddim', ''));

// `recipe` has the keys of InferenceConfig; `settings` are quality and strength.
export function makePlan(recipe, schedule, { quality, strength }) {
  let rounds = recipe.rounds.map((round) => ({ ...round }));
  if (strength !== null && strength !== undefined) {
    const count = chainOf(rounds[0]);
    rounds[0].start = Math.min(count - 1, Math.max(1, rint(strength * count)));
  }
  let { sampler, steps, final_color_transfer: lastTransfer } = recipe;
  if (quality === 'preview') {
    rounds = rounds.slice(0, 1);
    [sampler, steps] = ['dpmpp', PREVIEW_STEPS];
    lastTransfer &&= PREVIEW_TRANSFER;
  }
  return {
    rounds: rounds.map((round, number) => {
      const chain = schedule.respaced(round.respacing), start = chain[round.start];
      return {
        sampler, start,
        timesteps: sampler === 'ddim' ? chain.slice(0, round.start).reverse() : schedule.descent(start, steps),
        guidance: { scale: round.guidance, rescale: recipe.guidance_rescale },
        transfer: number ? recipe.color_transfer : '',
      };
    }),
    lastTransfer,
    lastShare: recipe.final_color_share,
  };
}

// The first round's start as a share of its chain: the strength that the recipe has.
export function strengthOf(recipe) {
  return recipe.rounds[0].start / chainOf(recipe.rounds[0]);
}
