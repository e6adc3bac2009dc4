"""Single runs in float64, with which ensembles are compared."""

from vamf.flow.objectives.terms import Draws


def in_float64(trainer):
    """A trainer whose network, draws and hence everything else are float64."""
    trainer.net.double(), trainer.ema.double()
    draw = trainer.objective.draw

    def in_double(*of):
        draws, uniform = draw(*of)
        doubled = (part.double() for part in draws[:4])
        return Draws(*doubled, draws.n_equal), uniform.double()

    trainer.objective.draw = in_double
    return trainer
