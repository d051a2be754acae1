"""The models of a run, base and teacher: found once, noted in the manifest, and the same for every later stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssd_lite.errors import UserError
from ssd_lite.recipe import Recipe
from ssd_lite.run_folder import RunFolder

if TYPE_CHECKING:
    from ssd_lite.engines.model_source import ModelSource


def base_model(run: RunFolder) -> ModelSource:
    """The model the recipe names; the first stage notes its Hub commit and weights, later ones are held to them.

    Raises UserError if the weights under that name are others now.
    """
    return _held_to(run, "model", run.recipe.model.name, run.recipe.model.revision, "model.name")


def check_gguf(recipe: Recipe, source: ModelSource) -> None:
    """Raise UserError where the recipe asks for GGUFs, hours later, of a model that cannot be written as one."""
    if source.gguf or not (recipe.export.types or recipe.evaluate.gguf):
        return
    from ssd_lite.engines.gguf.model import GgufModel
    from ssd_lite.engines.model_source import hf_folder
    from ssd_lite.engines.weights.model_folder import ModelFolder

    try:
        GgufModel(ModelFolder(hf_folder(source)))
    except UserError as error:
        raise UserError(
            f"the run would end without its GGUF files: {error.what}",
            where="export.types",
            next_step=f"Set export.types: [] (and evaluate.gguf: []) to go on without. {error.next_step}",
        ) from error


def teacher_model(run: RunFolder) -> ModelSource | None:
    """The model of sample.teacher, None where the base answers itself; noted and held to as the base is."""
    name = run.recipe.sample.teacher
    return None if name is None else _held_to(run, "teacher", name, None, "sample.teacher")


def _held_to(run: RunFolder, role: str, name: str, revision: str | None, key: str) -> ModelSource:
    from ssd_lite.engines.model_source import resolve_model

    noted = run.manifest().get(role)
    source = resolve_model(name, noted["revision"] if noted else revision, key)
    if noted is None:
        facts = ("name", "kind", "revision", "weights_sha256", "note")
        run.note(role, {fact: getattr(source, fact) for fact in facts})
    elif noted["weights_sha256"] != source.weights_sha256:
        raise UserError(
            f"the weights of {source.name} are not those this run started with "
            f"({source.weights_sha256[:12]} instead of {noted['weights_sha256'][:12]}).",
            where=str(run.path),
            next_step="Put the old weights back, or start a new run with --out.",
        )
    return source
