"""Combine(Job): adapters added with weights, one of which may be negative: arithmetic on task vectors.

Source: Ilharco et al. 2023 (arXiv 2212.04089): theta = theta_base + sum_i w_i (theta_i - theta_base); a negative weight
takes a skill away, as Huang et al. 2025 (arXiv 2510.09915) do with faults: 1 for the tuned adapter, -epsilon for one
trained on faults. Differences: (1) for LoRA adapters, whose updates are added exactly by stacking them: the rank of the
result is the sum of theirs.
"""

from typing import Any, ClassVar

from pydantic import Field

from align.training import save_whole
from counterfoil.errors import InputError
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.models import find_model, fingerprint_model
from eval.parts import find_adapter, read_adapter

__all__ = ["Combine"]


class Combine(Job):
    """Write `adapter`: the sum of weighted adapters on one model."""

    VERB: ClassVar[str] = "align"

    adapters: tuple[InputPath, ...] = Field(min_length=1)
    """Folders of LoRA adapters that were trained on the same model."""
    weights: tuple[float, ...] = Field(min_length=1)
    """One for each: 1 adds it as it was trained, -1 takes it away."""
    model: ModelName = "smollm2"
    """The model that they were trained on: a name, a folder, a GGUF file or a hub id."""

    def check(self) -> None:
        """Raise InputError where there is not one weight for each adapter."""
        if len(self.adapters) != len(self.weights):
            given = f"{len(self.weights)} weights for {len(self.adapters)} adapters"
            raise InputError("weights", given=given, allowed="one for each", do="Add or remove some.")

        kinds = {read_adapter(path, where="adapters").get("task_type") for path in self.adapters}
        if len(kinds) > 1:
            given = f"adapters for {' and '.join(sorted(map(str, kinds)))}"
            raise InputError("adapters", given=given, allowed="adapters for one task", do="Combine those alone.")

    def work(self, run: Run) -> None:
        """Stack the updates."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        folder = find_model(self.model)
        run.facts["model"] = fingerprint_model(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        names = [f"part{at}" for at in range(len(self.adapters))]
        for name, path in zip(names, map(find_adapter, self.adapters), strict=True):
            if isinstance(model, PeftModel):
                model.load_adapter(str(path), adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, str(path), adapter_name=name)
        model.add_weighted_adapter(names, list(self.weights), adapter_name="adapter", combination_type="cat")
        model.set_adapter("adapter")
        for name in names:
            model.delete_adapter(name)

        def save(partial: Any) -> None:
            model.save_pretrained(partial, selected_adapters=["adapter"])
            for path in (partial / "adapter").iterdir():  # PEFT gives every name but `default` a folder
                path.replace(partial / path.name)
            (partial / "adapter").rmdir()

        save_whole(run.folder / "adapter", save)
        run.counts |= {"read": len(names), "kept": len(names)}
