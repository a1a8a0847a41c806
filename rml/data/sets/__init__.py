"""Data sets that are made from fetched archives, one file each: a TFDS builder and its reader.

`SETS` lists them by name. `rml.assets` fetches the archives, `rml.data.builders` prepares.
"""

from rml.data.packaged import Fetched
from rml.data.sets.clipart import Clipart
from rml.data.sets.debian import Debian
from rml.data.sets.emoji import Emoji
from rml.data.sets.fashion_mnist import FashionMnist
from rml.data.sets.flights import Flights
from rml.data.sets.icons import Icons
from rml.data.sets.manuals import Manuals
from rml.data.sets.questions import Questions, Spam
from rml.data.sets.ratings import Ratings
from rml.data.sets.sotu import Sotu
from rml.data.sets.tasks import Tasks
from rml.data.sets.units import Units
from rml.data.sets.wiki_vital import WikiVital, WikiVitalEs, WikiVitalFr
from rml.data.sets.wordnet import Wordnet

SETS: dict[str, type[Fetched]] = {
    one.name: one
    for one in (
        Clipart,
        Debian,
        Emoji,
        FashionMnist,
        Flights,
        Icons,
        Manuals,
        Questions,
        Ratings,
        Sotu,
        Spam,
        Tasks,
        Units,
        WikiVital,
        WikiVitalEs,
        WikiVitalFr,
        Wordnet,
    )
}

__all__ = ["SETS"]
