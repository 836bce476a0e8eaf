"""Chat rows of any amount for throughput.rs and throughput.py, the same for the same amount.

    python make_rows.py BYTES > rows.jsonl

One to four turns a row; contents are words of a small vocabulary with numbers among them.
"""

import json
import random
import sys

WORDS = """the of and to in is that it was for on are as with his they be at one have this from or had by word
but what some we can out other were all there when up use your how said an each she which do their time if will
way about many then them write would like so these her long make thing see him two has look more day could go
come did number sound no most people my over know water than call first who may down side been now find any new
work part take get place made live where after back little only round man year came show every good me give our
under name very through just form sentence great think say help low line differ turn cause much mean before move
right boy old too same tell does set three want air well also play small end put home read hand port large spell
add even land here must big high such follow act why ask men change went light kind off need house picture try
us again animal point mother world near build self earth father function parameter compile gradient über café"""
WORDS = WORDS.split()


def text(rng, longest):
    words = rng.choices(WORDS, k=rng.randint(3, longest))
    for at in range(7, len(words), 23):
        words[at] = str(rng.randint(0, 99999))
    return " ".join(words).capitalize() + "."


def main():
    rng = random.Random(42)
    left = int(float(sys.argv[1]))
    while left > 0:
        messages = []
        for _ in range(rng.randint(1, 4)):
            messages.append({"role": "user", "content": text(rng, 40)})
            messages.append({"role": "assistant", "content": text(rng, 120)})
        row = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        left -= len(row.encode())
        sys.stdout.write(row)


main()
