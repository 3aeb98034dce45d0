"""What a language model says of written texts, in one pass each: their probability, their last state, their states' angles.

Isotropy is 1 less the mean cosine of two different tokens' last-layer states, over all pairs of all texts (Su and Collier
2022, arXiv 2210.14140, equation 7).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from decode.chat import encode_prompt, encode_text
from decode.loaded import Loaded

__all__ = ["Reading", "read_text"]


@dataclass(frozen=True)
class Reading:
    """Of one text after its prefix."""

    logprob: float
    """Of the text given the prefix, nats."""
    num_tokens: int
    """Of the text."""
    state: Sequence[float]
    """Of the last token, in the last layer (H,)."""
    cosines: float
    """Sum over ordered pairs of different tokens, prefix included."""
    num_pairs: int

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Reading:
        """Read what `dump` wrote."""
        return cls(**json.loads(text))


def read_text(loaded: Loaded, prefix: str, text: str) -> Reading:
    """Read a text after its prefix."""
    import torch

    before = encode_prompt(loaded.tokenizer, prefix) or [loaded.eos_ids[0]]
    after = encode_text(loaded.tokenizer, text)
    ids_1T = torch.tensor([before + after], device=loaded.device)
    with torch.inference_mode():
        result = loaded.model(input_ids=ids_1T, output_hidden_states=True)
        logits_TV = result.logits[0, len(before) - 1 : -1].float() if after else result.logits[0, :0].float()
        logps_TV = logits_TV.log_softmax(-1)
        targets_T = torch.tensor(after, device=loaded.device, dtype=torch.long)
        states_TH = result.hidden_states[-1][0].float()
        unit_TH = torch.nn.functional.normalize(states_TH, dim=-1)
        total, length = unit_TH.sum(0), len(unit_TH)
        return Reading(
            logprob=float(logps_TV.gather(1, targets_T[:, None]).sum()),
            num_tokens=len(after),
            state=[round(value, 5) for value in states_TH[-1].tolist()],
            cosines=float(total @ total) - length,
            num_pairs=length * (length - 1),
        )
