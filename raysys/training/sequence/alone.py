"""The fit of the sequence model in this process, for builds without Ray."""

from raysys.encoder.protocol import EncoderIdentity
from raysys.training.plan import BuildPlan
from raysys.training.sequence import stage
from raysys.training.sequence.examples import Histories
from raysys.training.sequence.fit import Alone, fit, save_fitted


def fit_alone(plan: BuildPlan, identity: EncoderIdentity) -> dict[str, int]:
    """Fit, and hand the model to the snapshot. Returns counts: nothing where there is nothing to fit on."""
    settings = plan.settings.behaviour.sequence
    assert settings is not None  # noqa: S101  # nobody asks without
    counts = stage.write_histories(plan, identity)
    if not counts:
        return {}
    histories = Histories.load(plan.fitted("sequence"))
    model, progress = fit(histories, settings, Alone())
    save_fitted(plan.fitted("sequence"), model, histories, progress)
    stage.conclude(plan)
    return counts | progress.counts()
