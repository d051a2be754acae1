"""The base model of a run: found once, noted in the manifest, and the same for every later stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.run_folder import RunFolder

if TYPE_CHECKING:
    from ssd_lite.engines.model_source import ModelSource


def base_model(run: RunFolder) -> ModelSource:
    """The model the recipe names; the first stage notes its Hub commit and weights, later ones are held to them.

    Raises UserError if the weights under that name are others now.
    """
    from ssd_lite.engines.model_source import resolve_model

    noted = run.manifest().get("model")
    source = resolve_model(run.recipe.model.name, noted["revision"] if noted else run.recipe.model.revision)
    if noted is None:
        facts = ("name", "kind", "revision", "weights_sha256", "note")
        run.note("model", {fact: getattr(source, fact) for fact in facts})
    elif noted["weights_sha256"] != source.weights_sha256:
        raise UserError(
            f"the weights of {source.name} are not those this run started with "
            f"({source.weights_sha256[:12]} instead of {noted['weights_sha256'][:12]}).",
            where=str(run.path),
            next_step="Put the old weights back, or start a new run with --out.",
        )
    return source
