"""What the scripted model says, by what it is asked."""

MARKDOWN = '''\
## Sorting, compared

Both sort **in place**, but *how* differs; see [the article](https://example.org/sorting).

| Algorithm | Average | Worst | Stable |
|:----------|--------:|------:|:------:|
| Merge sort | `n log n` | `n log n` | yes |
| Quicksort | `n log n` | `n²` | no |

1. Pick a pivot
   - the first element is simple
   - a random one is safer
2. Split around it

> Premature optimisation is the root of all evil.

```python
def quicksort(items: list[int]) -> list[int]:
    """Sorted copy of items."""
    if len(items) < 2:
        return items
    pivot, *rest = items  # the first element
    low = [x for x in rest if x < pivot]
    high = [x for x in rest if x >= pivot]
    return quicksort(low) + [pivot] + quicksort(high)
```

---

Use ~~bubble sort~~ the one your language ships.
'''

HOSTILE = """\
<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3">

[click](javascript:window.hacked=4) [data](data:text/html,<script>window.hacked=5</script>)
[tricky](JaVaScRiPt&#58;window.hacked=6) [spaced]( java\tscript:window.hacked=7 )
[quoted](https://example.org/" onmouseover="window.hacked=8)
![picture](https://evil.example/pixel.png) ![inline](x" onerror="window.hacked=9)
<javascript:window.hacked=10> [page](page/chat.js) [relative](//evil.example/)

<style>body { display: none }</style><iframe srcdoc="<script>parent.hacked=11</script>"></iframe>

```html"><script>window.hacked = 12</script>
</code></pre><script>window.hacked = 13</script>
```

| <b onclick="window.hacked=14">cell</b> | [x](vbscript:window.hacked=15) |
|---|---|
| <form action="https://evil.example"><input name=q></form> | `<script>hacked=16</script>` |
"""

THOUGHT = "The person wants 12 + 30.\n\n- tens: 10 + 30 = 40\n- ones: 2\n\nSo it is 42."

REPLIES = {
    "markdown": {"text": MARKDOWN},
    "Compare two sorting algorithms in a table.": {
        "reasoning": "A table with the two best known ones, then code for one of them.",
        "text": MARKDOWN,
    },
    "hostile": {"text": HOSTILE, "reasoning": HOSTILE},
    "think": {"reasoning": THOUGHT, "text": "12 + 30 = **42**.", "pause": 0.03},
    "What is 12 plus 30?": {"reasoning": THOUGHT, "text": "12 + 30 = **42**."},
    "long": {"text": "".join(f"Line {n} of many.\n\n" for n in range(2000)), "pause": 0.02},
    "cut": {"text": "This is cut", "reason": "length"},
    "full": {"text": "The queue is full: 64 requests wait already.", "status": 429},
    "dies": {"text": "Half an ans", "dies": "The engine ran out of memory for this sequence."},
    "weather": {
        "reasoning": "I need the weather.",
        "calls": [("get_weather", '{"city": "Zürich", "days": 3}')],
    },
    "21 °C and sunny": {"text": "It is sunny in Zürich, 21 °C."},
}
