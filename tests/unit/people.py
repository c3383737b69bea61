"""Generated texts with personal data in them, or with what looks like it; and how well it is found.

Rules are tuned on the frames and numbers of `tuning=True`; figures are of the others.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stdnum import luhn
from stdnum.iso7064 import mod_97_10

from llmpipe.curation.pii import find
from llmpipe.curation.spans import Kind

Random = random.Random


@dataclass(frozen=True)
class Labelled:
    """A text and what it holds: kind, start, end."""

    text: str
    spans: frozenset[tuple[str, int, int]]


def filled(shape: str, rng: Random) -> str:
    """Fill in ¤ (2 to 9), # (0 to 9), ^ (a capital letter), § (a hex digit), * (a letter or digit)."""
    drawn = {
        "¤": "23456789",
        "#": string.digits,
        "^": string.ascii_uppercase,
        "§": "0123456789abcdef",
        "*": string.ascii_letters + string.digits,
    }
    return "".join(rng.choice(drawn[char]) if char in drawn else char for char in shape)


PHONES = (
    "(¤##) ¤##-####|¤##-¤##-####|¤##.¤##.####|¤## ¤## ####|+1 ¤## ¤## ####|+1-¤##-¤##-####|1-8##-¤##-####|+1¤##¤######"
    "|¤##-¤##-#### x###|020 7¤## ####|07¤## ######|0161 ¤## ####|+44 7¤## ######|+44 (0)20 7¤## ####|0044 7¤## ######"
    "|030 ¤#######|0151 ¤#######|+49 151 ¤#######|+49 (0)89 ¤######|089/¤######|0049 30 ¤#######|06 ## ## ## ##"
    "|01.4#.##.##.##|+33 6 ## ## ## ##|6¤# ### ###|+34 6¤# ### ###|+39 3¤# ### ####|02 ¤### ####|+91 9#### #####"
    "|04¤# ### ###|+61 4¤# ### ###|03-¤###-####|+81 90-####-####|(11) 9####-####|+55 11 9####-####|¤# ## ## ##"
    "|+45 ¤# ## ## ##|+7 9## ###-##-##|+86 13# #### ####|0¤##-¤#####|+31 6 ¤#######|06-¤#######|¤######|¤### ####"
).split("|")
IBANS = {
    "DE": "#" * 18,
    "FR": "#" * 10 + "^" * 11 + "##",
    "GB": "^^^^" + "#" * 14,
    "ES": "#" * 20,
    "IT": "^" + "#" * 10 + "^" * 12,
    "NL": "^^^^" + "#" * 10,
    "CH": "#" * 17,
    "PL": "#" * 24,
    "BE": "#" * 12,
    "SE": "#" * 20,
    "PT": "#" * 21,
    "NO": "#" * 11,
    "AT": "#" * 16,
    "IE": "^^^^" + "#" * 14,
}
CARDS = ("4" + "#" * 14, "4" + "#" * 14, "51" + "#" * 13, "55" + "#" * 13, "2345" + "#" * 11, "37" + "#" * 12)
CARDS += ("34" + "#" * 12, "6011" + "#" * 11, "3530" + "#" * 11, "36" + "#" * 11, "62" + "#" * 13)
KEYS = ("AKIA" + "^#^^" * 4, "ghp_" + "*" * 36, "sk-proj-" + "*" * 40, "hf_" + "*" * 34, "AIza" + "*" * 35)
KEYS += ("xoxb-" + "#" * 12 + "-" + "*" * 24, "sk_live_" + "*" * 24, "glpat-" + "*" * 20, "npm_" + "*" * 36)
NAMES = "anna.kowalski j.smith li_wei maria+news m-garcia o'neill user42 sofia jürgen.weiß ahmed.h x contact b2b-sales"
HOSTS = "example.com mail.example.org uni-wien.ac.at firma.de co.uk.example.net acme.io bücher.example post.museum a.co"


def phone(rng: Random) -> str:
    return filled(rng.choice(PHONES), rng)


def email(rng: Random) -> str:
    name, host = rng.choice(NAMES.split()), rng.choice(HOSTS.split())
    if rng.random() < 0.1 and host.isascii():
        return f"{name} [at] {host}" if rng.random() < 0.5 else f"{name} (at) {host.replace('.', ' (dot) ')}"
    return f"{name}@{host}".upper() if rng.random() < 0.1 and (name + host).isascii() else f"{name}@{host}"


def ip(rng: Random) -> str:
    if rng.random() < 0.6:
        return ".".join(str(rng.randint(1, 223 if place == 0 else 255)) for place in range(4)).replace("127.", "128.")
    groups = ["2001", *(filled(rng.choice(("§§§§", "§§§", "§")), rng).lstrip("0") or "0" for _ in range(7))]
    if rng.random() < 0.5:
        groups[1] = "db8"
    full = ":".join(groups)
    return full if rng.random() < 0.5 else ":".join(groups[:3]) + "::" + filled("§§§", rng).lstrip("0") + "1"


def iban(rng: Random) -> str:
    country = rng.choice(sorted(IBANS))
    account = filled(IBANS[country], rng)
    number = country + mod_97_10.calc_check_digits(account + country) + account
    shape = rng.random()
    if shape < 0.1:
        return number.lower()
    return number if shape < 0.5 else " ".join(re.findall(".{1,4}", number))


def card(rng: Random) -> str:
    start = filled(rng.choice(CARDS), rng)
    number = start + luhn.calc_check_digit(start)
    if rng.random() < 0.5:
        return number
    parts = {16: r"(....)(....)(....)(....)", 15: r"(....)(......)(.....)", 14: r"(....)(......)(....)"}
    return rng.choice(" -").join(re.fullmatch(parts[len(number)], number).groups())


def key(rng: Random) -> str:
    return filled(rng.choice(KEYS), rng)


MAKERS: dict[Kind, Callable[[Random], str]] = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "iban": iban,
    "card": card,
    "key": key,
}
# frames for tuning, and frames for the figures
FRAMES: dict[Kind, tuple[str, str]] = {
    "email": (
        "Write to {} for details.|{}|E-mail: {}|Her address is {}, I think.|<{}>|From: Jo <{}>|(see {})|mailto:{}",
        "You can reach us via {}.|cc {}; thanks|My new mail: {}!|“{}” bounced twice.|[{}]|Questions? {}|user={}&id=7",
    ),
    "phone": (
        "Call me at {}.|Phone: {}|Tel. {}|Fax: {}|My number is {}, ring any time.|{} (mobile)|Text us on {}|Dial {} now"
        "|Contact: Jo Smith, {}|You can reach her on {} after six.|Hotline {}|WhatsApp {}|Office: {}|"
        "We called {} twice.|{}|Jo Smith, {}|Ask Li ({}) about it.",
        "Phone {} for a table.|T: 12 High Street. Telephone: {}|His mobile is {}.|Please call back: {}|{} - office"
        "|Give me a ring on {}|Sms to {}|Leave a voicemail at {}.|The plumber's number? My number was {}.|Fax {}"
        "|Mobile/WhatsApp: {}|To book, dial {}|They phoned from {}|Reach out at {} or by post"
        "|{}|Kim Lee {}|{} is where she lives now.|Dr. Weiß, {}",
    ),
    "ip": (
        "Failed login from {}.|{} - - GET /index.html|host={}|ping {}|The server ({}) is down.|client: {}, server: x",
        "ssh root@{} did not work|Blocked {} after five tries|src={} dst=gateway|Connection to {} lost|remote_addr={};",
    ),
    "iban": (
        "Please pay to {}.|IBAN: {}|My account is {} at the bank.|{}|Transfer from {} to savings.|iban={};",
        "Send it to {}, thanks.|Bank details: {}|IBAN {} BIC NOTABANK|Refund to {} today.|({})|Account holder Jo, {}",
    ),
    "card": (
        "My card {} was stolen.|Card number: {}|Pay with {}, please.|Visa {} expires 04/27.|{}|I lost {} yesterday.",
        "Charge {} for it.|Credit card: {}|Is {} still valid?|cc {} exp 09/28|Please block {} now.|“{}” was declined",
    ),
    "key": (
        "token = '{}'|export API_KEY={}|Authorization: Bearer {}|I pasted {} by mistake.|key: {}",
        "secret: {}|curl -H 'X-Api-Key: {}'|client = Client(\"{}\")|Use {} for tests|{} leaked",
    ),
}
# What is none of it: shapes by the name of the kind that they resemble.
DECOYS = (
    "The meeting is on 20##-0¤-1#.|On 1#.0¤.20## at 1#:¤#.|0¤/1#/20##|Order number ####-####-## has shipped."
    "|Order ################ is on its way.|Tracking: ####################|Invoice no. ##########"
    "|ISBN 978-3-16-1#####-#|ISBN 0-306-4####-#|ISBN: 978#########"
    "|version 2.1#.#.#|v1.¤.#.1#|Release 10.0.1#.¤ of the build|Chrome/9#.0.¤.1#"
    "|It costs $1,¤##,###.##.|€ #.###.###,##|1¤### ### people live there|lat 4¤.######, lon -7#.######"
    "|12:¤#:## and 0#:1#:##|MAC 0§:§§:§§:§§:§§:§§|std::vector<int> a; abc::def|x[1::2] and y[::¤]|logo@2x.png"
    "|npm i left-pad@1.¤.#|git clone git@github.com:a/b.git|@user_name said so"
    "|sha256:§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§"
    "|§§§§§§§§-§§§§-4§§§-a§§§-§§§§§§§§§§§§|commit §§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§§|1990-20##, pp. 1##-1¤#"
    "|SSN 5¤#-¤#-####|Zip 9¤###-####|IMEI 35#############|EAN 400#########|timestamp 17###########"
    "|scikit-learn, sk-learn|your_api_key_here|API_KEY=xxxxxxxxxxxxxxxxxxxxxxxx"
    "|netmask 255.255.255.0 on 127.0.0.1|section 3.1.¤.1 says"
    "|Patent US 1#,###,###|pi is 3.14159265358979|model A4#-###-####|doi 10.1#00/¤####.#####|arXiv:2#0¤.#####"
    "|In 1¤##, 2¤## men and 3¤## horses|scores 12-¤ 1#-8 2-1|id: ##########|a@b and me@localhost|2#### 3#### 4####"
).split("|")


def texts(kind: Kind, seed: int, *, tuning: bool, count: int = 1000) -> list[Labelled]:
    """Return generated texts: two thirds with one find of the kind, one third with something that looks like one."""
    rng = Random(f"{kind} {seed}")
    frames = FRAMES[kind][0 if tuning else 1].split("|")
    made = []
    for number in range(count):
        decoy = filled(rng.choice(DECOYS), rng) if number % 3 == 0 or rng.random() < 0.3 else ""
        if number % 3 == 0:
            made.append(Labelled(decoy, frozenset()))
            continue
        before, after = rng.choice(frames).split("{}")
        before = f"{decoy}\n{before}" if decoy else before
        value = MAKERS[kind](rng)
        made.append(Labelled(before + value + after, frozenset({(kind, len(before), len(before) + len(value))})))
    return made


PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
}


def presidio(path: Path) -> list[Labelled]:
    """Read the labelled texts that presidio-research generates; labels of other kinds than ours are left out."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        Labelled(
            row["full_text"],
            frozenset(
                (PRESIDIO[span["entity_type"]], span["start_position"], span["end_position"])
                for span in row["spans"]
                if span["entity_type"] in PRESIDIO
            ),
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Score:
    """How many finds are right, exact to the character; how many were there; how many were found."""

    right: int
    there: int
    found: int

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0


def scores(labelled: Iterable[Labelled]) -> dict[str, Score]:
    """Compare what is found with what is there, by kind."""
    right, there, found = Counter[str](), Counter[str](), Counter[str]()
    for one in labelled:
        spans = {(span.kind, span.start, span.end) for span in find(one.text)}
        right.update(kind for kind, _, _ in spans & one.spans)
        there.update(kind for kind, _, _ in one.spans)
        found.update(kind for kind, _, _ in spans)
    return {kind: Score(right[kind], there[kind], found[kind]) for kind in MAKERS}
