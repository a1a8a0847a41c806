"""TGeo-KD on 4,000 flights of sixty days, of which 3% arrive two hours late.

python -m experiments.run --config=configs/distillation/tgeokd_flights.py --workdir=runs/flights

Needs the archive of flights, `make assets`. The teacher has 60,000 flights of 180 other days.
Options of all sides are chosen on 45 more days by the run itself. The teacher's rate was chosen on
validation flights of two seeds, and one run with few tries was looked at. Students have the
temperatures, rates and rules of `tries`: loss.temperature, optimizer.learning_rate, learned.rate
and given change none of them.

Result: results/tgeokd, 3 min 37 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict

from configs import parts
from configs.distillation import tgeokd


def get_config() -> ConfigDict:
    config = tgeokd.get_config()
    config.experiment = "distillation.tgeokd_flights"
    config.classes = 2
    del config.augment, config.noise, config.evaluation, config.timing
    config.data = ConfigDict(
        dict(
            name="flights",
            image_shape=(1, 1, 155),  # a distance, and an input for each month, airport and so on
            late=120.0,  # minutes at arrival
            share=0.5,  # of late flights among training rows, which are repeated
            days=dict(teacher=180, train=60, validation=45),
            rows=dict(teacher=60_000, train=4_000, validation=20_000, test=30_000),
        )
    )
    config.tries.learning_rate = (3e-3, 1.2e-2)
    config.teacher = ConfigDict(
        dict(
            model=dict(
                name="mlp", hidden=(128,), features=32, norm="none", activation="relu",
            ),
            optimizer=parts.optimizer(learning_rate=3e-4, warmup_steps=50, weight_decay=1e-1),
            train=parts.training(steps=800, batch_size=256, eval_every=0, checkpoint_every=800),
        )
    )  # fmt: skip
    return config
