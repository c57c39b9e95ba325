"""A run as lm-evaluation-harness's own interface sees a model (its extra, see `lm_eval_tasks`)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from research.batch import SHARED, Batch, bucket_length, longest_first
from research.evaluation.question_task import LoadedModel
from research.evaluation.results import Cost
from research.evaluation.scoring import choice_row, most_targets
from research.generation import decode
from research.generation.decode import Completion
from research.generation.decoder import Request, prompt_length
from research.generation.responders import find_stops, tell_left_out
from research.generation.sampling import Sampling
from research.text.conversation import from_messages
from research.text.thoughts import ThoughtMarks

# tokens of a row with several answers, unless one question with one answer has more
SHARED_ROW = 1024
# what a task may say of how an answer is written, beside `until` and the most tokens
_SAMPLING = ("temperature", "top_k", "top_p")


@dataclasses.dataclass
class Usage:
    """What one question cost."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    # whether it was cut to the window, or an answer before its end
    truncated: bool = False
    is_cut: bool = False
    flops: float = 0.0


class HarnessModel(TemplateLM):
    """A loaded model, asked as lm-eval asks.

    Texts are cut to the model's window on the left, as lm-eval's class for transformers does, and
    tokenized as there, but for one thing: a special token that a text spells out is its characters.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int):
        """Prepares a model.

        Args:
          batch_size: rows of a batch; rounded up to a multiple of the devices.

        Raises:
          ValueError: it was trained to fill in masked tokens.
        """
        super().__init__()
        self._loaded, self._responder = loaded, loaded.responder
        self._run = self._responder.run
        self.tokenizer = self._run.tokenizer
        self._stop_ids = find_stops(self._run, [self._responder])
        devices = jax.device_count()
        self.batch_size = -(-batch_size // devices) * devices
        self.max_length = self._run.context_length - prompt_length(loaded.model)
        # a chat prompt as text -> its tokens, and whether it was cut
        self._prompts: dict[str, tuple[list[int], bool]] = {}
        # (task, number of its document) -> what it cost
        self.usage: dict[tuple[Any, Any], Usage] = collections.defaultdict(Usage)
        # tokens of the longest prompt with its answer, where answers were written
        self._longest_written = 0

    @property
    def _longest_row(self) -> int:
        """Tokens that a row may have; 0: any, for positions restart in it."""
        return self.max_length if self._run.model.learned_positions else 0

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.begin_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.fingerprint()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text, after what a bare prompt starts with unless that is refused."""
        if string in self._prompts:
            return self._prompts[string][0]
        opening = self.tokenizer.opening if add_special_tokens in (None, True) else []
        return [*opening, *self.tokenizer.encode(string)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._prompts:
            return super()._encode_pair(context, continuation)
        return self._prompts[context][0], self.tokenizer.encode(continuation)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return None  # of no name: a run writes conversations in one way

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the run was tuned to read it, or an imported model's template writes
        it.

        Raises:
          ValueError: the template does not take it, or has no place for some of it.
        """
        *before, last = chat_history
        # where the beginning of an answer is given, it follows the prompt
        start = "" if add_generation_prompt else last["content"]
        messages = chat_history if add_generation_prompt else before
        ids, is_cut = self._responder.prompt(from_messages(messages))
        if len(messages) > 1 and ids == self._responder.prompt(from_messages(messages[-1:]))[0]:
            raise ValueError(
                "the template has a place for one message, and the task has examples or a system's "
                "message before it: leave --apply-chat-template out"
            )
        ids = [*ids, *self.tokenizer.encode(start)]
        text = self.tokenizer.decode(ids, special=True)
        self._prompts[text] = ids, is_cut
        return text

    def cost(self, task: str) -> Cost:
        """What all questions of a task cost; keys and values are those of the longest answers."""
        flops = sum(usage.flops for (name, _), usage in self.usage.items() if name == task)
        longest = self._longest_written
        cache = self._loaded.cache_bytes(self.batch_size, longest) if longest else 0
        return Cost(flops, self._loaded.weight_bytes, cache)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        self._requests = list(requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, in windows of which each begins where the last one ends.

        As lm-eval's class for transformers: also what a bare prompt starts with is predicted.
        """
        self._requests, pairs, owners = [], [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                pairs.append((request.args, *make_disjoint_window(window)))
                owners.append(number)
                self._requests.append(request)
        scores = self._loglikelihood_tokens(pairs)
        nats = [score for score, _ in scores]
        return np.bincount(owners, nats, minlength=len(requests)).tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer after its question, and whether it is the greedy one.

        A question with several answers is computed once, as `scoring.choice_row` writes it.
        """
        places: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for number, (strings, question, answer) in enumerate(requests):
            if not answer or len(answer) > self.max_length:
                raise ValueError(
                    f"an answer of {len(answer)} tokens, {strings[-1]!r:.60}: it needs one at "
                    f"least, and {self.max_length} fit the model's window"
                )
            usage = self._usage(self._requests[number])
            usage.truncated |= len(question) + len(answer) > self.max_length + 1
            # cut on the left; the last token is predicted and not read
            context = tuple([*question, *answer][-(self.max_length + 1) : -len(answer)])
            usage.prompt_tokens += len(answer) - 1 + (context not in places) * len(context)
            places.setdefault(context, {}).setdefault(tuple(answer), []).append(number)
        for context, answers in places.items():
            usage = self._usage(self._requests[next(iter(answers.values()))[0]])
            usage.flops += self._loaded.flops.options(len(context), map(len, answers))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        rows = list(_split_rows(places, self._longest_row))
        for row, scores in zip(rows, self._score_rows(rows), strict=True):
            for row_answer, score in zip(row[1], scores, strict=True):
                for number in places[row[0]][row_answer]:
                    results[number] = score
        return results

    def _score_rows(self, rows: Sequence[_Row]) -> list[list[tuple[float, bool]]]:
        lengths = [len(question) - 1 + sum(map(len, answers)) for question, answers in rows]
        most = most_targets([answers for _, answers in rows]) if rows else 0
        scores: list[list[tuple[float, bool]]] = [[]] * len(rows)
        progress = tqdm(total=len(rows), desc="likelihoods", unit="row", disable=None, leave=False)
        with progress:
            for numbers in longest_first(lengths, self.batch_size):
                # the longest row comes first
                length = bucket_length(lengths[numbers[0]], longest=self._longest_row)
                part = [rows[number] for number in numbers]
                full = part + [part[-1]] * (self.batch_size - len(part))  # one shape of all batches
                nll, correct, segments = self._losses(full, length, most)
                for row, number in enumerate(numbers):
                    places = np.maximum(segments[row], 0)
                    count = len(rows[number][1]) + 1
                    nats = np.bincount(places, nll[row], minlength=count)[1:]
                    wrong = np.bincount(places, 1 - correct[row], minlength=count)[1:]
                    scores[number] = [
                        (-float(n), w == 0) for n, w in zip(nats, wrong.tolist(), strict=True)
                    ]
                progress.update(len(numbers))
        if not np.isfinite([nats for row in scores for nats, _ in row]).all():
            raise ValueError("the model's likelihoods are not finite: its weights are broken")
        return scores

    def _losses(
        self, rows: Sequence[_Row], length: int, most: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nats, correctness and segments [B,S] of rows of `most` targets; a token that is no
        answer's has 0 nats and is correct."""
        columns = zip(*(choice_row(*row, length) for row in rows), strict=True)
        tokens, targets, weights, segments, positions = map(np.stack, columns)
        is_shared = any(len(answers) > 1 for _, answers in rows)
        batch = Batch(tokens, targets, weights, segments, positions, shared=is_shared)
        if not batch.shared:  # question and answer are one document, as fast attention takes it
            batch = dataclasses.replace(batch, segments=np.where(segments == SHARED, 1, segments))
        batch = dataclasses.replace(batch, most_targets=most)
        losses = self._loaded.losses(batch)
        is_scored = weights > 0
        nll = np.where(is_scored, np.asarray(losses.nll, np.float64), 0.0)
        return nll, np.where(is_scored, np.asarray(losses.correct), 1.0), segments

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to the first of its stop strings.

        Raises:
          ValueError: a setting of a task that Graft does not have, or no room for a question.
        """
        prompts: list[list[int]] = []
        groups: dict[_Settings, list[int]] = collections.defaultdict(list)
        for number, request in enumerate(requests):
            text, settings = request.args
            parsed = self._read_settings(settings)
            room = self.max_length - parsed.new_tokens
            if room < 1:
                raise ValueError(
                    f"answers of {parsed.new_tokens} tokens (max_gen_toks) leave no room for a "
                    f"question in the model's window of {self.max_length}"
                )
            ids = self.tok_encode(text)
            usage = self._usage(request)
            usage.truncated |= len(ids) > room or self._prompts.get(text, ([], False))[1]
            prompts.append(ids[-room:])
            usage.prompt_tokens += len(prompts[-1])
            groups[parsed].append(number)
        answers = [""] * len(requests)
        progress = tqdm(
            total=len(prompts), desc="answers", unit="question", disable=None, leave=False
        )
        with progress:
            for settings, numbers in groups.items():
                texts = self._write([prompts[number] for number in numbers], settings, progress)
                tell_left_out(ThoughtMarks(), self.tokenizer, [answer.tokens for answer in texts])
                for number, answer in zip(numbers, texts, strict=True):
                    usage = self._usage(requests[number])
                    count = len(answer.tokens)
                    usage.new_tokens += count
                    usage.flops += self._loaded.flops.answer(
                        len(prompts[number]), count + (not answer.is_cut)
                    )
                    room = len(prompts[number]) + settings.new_tokens
                    self._longest_written = max(self._longest_written, room)
                    usage.is_cut |= answer.is_cut
                    text = self.tokenizer.decode(answer.tokens)
                    answers[number] = postprocess_generated_text(text, list(settings.until), None)
        return answers

    def _write(
        self, prompts: list[list[int]], settings: _Settings, progress: tqdm
    ) -> list[Completion]:
        """New tokens of each answer up to its stop string, and whether it was cut before one."""
        ends = {self.tokenizer.end_id, *self._stop_ids, *self._named_stops(settings.until)}
        requests = [
            Request(
                prompt=prompt,
                new_tokens=settings.new_tokens,
                ends=frozenset(ends),
                sampling=settings.sampling,
                number=number,  # a question asked twice gets two answers where they are drawn
                adapter=self._responder.number,
            )
            for number, prompt in enumerate(prompts)
        ]
        return decode.complete(
            self._loaded.model,
            requests,
            self.batch_size,
            is_over=lambda ids: self._has_stop(ids, settings.until),
            on_end=progress.update,
            cache_dtype=self._loaded.cache_dtype,
        )

    def _has_stop(self, ids: list[int], until: Sequence[str]) -> bool:
        """Whether one of the strings stands at the end of a text, within its last token."""
        # a token has a byte at least, and four of them may be a character
        longest = max((len(text.encode()) for text in until), default=0)
        end = self.tokenizer.decode(ids[-(longest + 4) :])
        return any(text in end for text in until)

    def _named_stops(self, until: Sequence[str]) -> list[int]:
        """Ids of stop strings that are special tokens."""
        return [self.tokenizer.tokens()[text] for text in until if text in self.tokenizer.special]

    def _read_settings(self, settings: dict[str, Any]) -> _Settings:
        values = dict(normalize_gen_kwargs(settings, default_max_gen_toks=256))
        end = self.tokenizer.decode([self.tokenizer.end_id], special=True)
        until = handle_stop_sequences(values.pop("until", None), eos=end)
        new_tokens, is_sampled = values.pop("max_gen_toks"), values.pop("do_sample")
        sampling = {name: values.pop(name) for name in _SAMPLING if name in values}
        if values:
            raise ValueError(
                f"a task's generation_kwargs have {', '.join(sorted(values))}, which Graft has not"
            )
        if not is_sampled:
            sampling = {}
        return _Settings(tuple(filter(None, until)), new_tokens, Sampling(**sampling))

    def _usage(self, request: Any) -> Usage:
        return self.usage[request.task_name, request.doc_id]


# a question, and the answers that are scored after it
_Row = tuple[tuple[int, ...], list[tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How answers are written."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: Sampling


def _split_rows(
    places: dict[tuple[int, ...], dict[tuple[int, ...], Any]], most: int
) -> Iterable[_Row]:
    """Rows of questions with as many of their answers as fit in `most` tokens; 0: as are well."""
    room = min(SHARED_ROW, most or SHARED_ROW)
    for question, answers in places.items():
        row: list[tuple[int, ...]] = []
        length = len(question) - 1
        for answer in answers:
            if row and length + len(answer) > room:
                yield question, row
                row, length = [], len(question) - 1
            row.append(answer)
            length += len(answer)
        yield question, row
