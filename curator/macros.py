"""Selections of rows as table macros of DuckDB, over the view `samples` and, where tokens count, `sample_tokens`.

With w_i the sample weight of row i, T_i its target tokens and u_i in (0, 1) a number drawn by its id and the seed:

    curated(threshold)                        rows with w_i ≥ threshold
    top_k(fraction)                           the first ⌈fraction·N_d⌉ rows of every domain by falling w_i, ties by u_i
    weighted_sample(n, seed)                  n rows without replacement: the smallest keys −ln(u_i)/w_i
    repeats(factor, max_repeats, seed)        r_i = min(max_repeats, factor·w_i), as ⌊r_i⌋ + [u_i < r_i − ⌊r_i⌋]
    token_budget(tokens, max_repeats, seed)   copies c = 1 … max_repeats of rows by rising key (c − 1 + u_i)/w_i, up to
                                              the first that exceeds the budget
    mixture(shares, tokens, max_repeats, seed)   the same in every domain d of `shares`, with its part of the budget
    quantiles(buckets)                        every row with `bucket`, "domain/q1" (lowest w_i) … "domain/qQ"

A row is in `token_budget` with c copies if λ·w_i is c, rounded up or down by u_i, where λ is the key at which the
budget is full: the rule of `repeats` at the factor that fits.

u_i is made of md5(seed:id), whose value is the same in every version of DuckDB (its hash() is not); the n-th key is
found first, in narrow columns, so that the rows themselves are streamed. Neither the order of rows nor the files that
they are in matters. Rows without a weight are never selected. An argument that means nothing fails with a
sentence that says what is allowed, as soon as there are rows: the limits are those of `curator.selection`.

Source: Efraimidis & Spirakis (2006) for the keys of `weighted_sample`; Ohlsson (1998), sequential Poisson sampling,
for those of `token_budget`, with u_i shared by the copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from connectors import duck

ADDED = ("num_tokens", "repeats", "bucket")
"""Columns that selections add; a column of the lake with such a name appears as `original_…` there."""
TOKENS = "sample_tokens"
"""The view (sample_id, num_tokens) that `token_budget` and `mixture` count by."""

LARGEST_INTEGER = 2**63 - 1
MOST_REPEATS = 1000
MOST_BUCKETS = 1000
_KEYS_PER_OCTAVE = 64
"""Width of the bins in which the end of a budget is looked for: only keys of one bin are sorted, about 1 % of them."""

Allowed = tuple[str, str]
"""SQL that is true of an argument that may be used ({0} is the argument as DOUBLE, {1} as given), and in words."""


def create_macros(
    connection: duck.Connection, *, sample_id: str = "s.sample_id", temporary: bool = True, count_tokens: bool = True
) -> None:
    """Make the macros of this module.

    Args:
        connection: has `samples` and, unless `count_tokens` is False, `sample_tokens`.
        sample_id: SQL for the id of a row of `samples AS s`.
        temporary: for this connection alone; otherwise they are stored in its database.
        count_tokens: whether to make `token_budget` and `mixture`.
    """
    columns = connection.sql("SELECT * FROM samples LIMIT 0").columns
    taken = {name.casefold() for name in columns}
    names = {"rows": _rows(columns), "own": _free_name("own", taken), "id": sample_id}
    seed = {"seed": _integer(-LARGEST_INTEGER)}
    repeated = {"max_repeats": _integer(1, MOST_REPEATS)} | seed
    budget = {"tokens": _integer(1)} | repeated
    macros: dict[str, tuple[str, Mapping[str, Allowed]]] = {
        "curated(threshold)": (_CURATED, {"threshold": ("isfinite({0})", "a number")}),
        "top_k(fraction)": (_TOP_K, {"fraction": ("{0} > 0 AND {0} <= 1", "above 0 and at most 1")}),
        "weighted_sample(n, seed := 0)": (_WEIGHTED_SAMPLE, {"n": _integer(1)} | seed),
        "repeats(factor, max_repeats, seed := 0)": (
            _REPEATS,
            {"factor": ("isfinite({0}) AND {0} > 0", "above 0")} | repeated,
        ),
        "quantiles(buckets)": (_QUANTILES, {"buckets": _integer(1, MOST_BUCKETS)}),
    }
    if count_tokens:
        one = _budgeted("1", "SELECT 1 AS part, coalesce(TRY_CAST(tokens AS BIGINT), 1) AS budget")
        macros["token_budget(tokens, max_repeats, seed := 0)"] = (one, budget)
        of_each = _budgeted("s.domain", _SHARES)
        macros["mixture(shares, tokens, max_repeats, seed := 0)"] = (of_each, {"shares": _ALLOWED_SHARES} | budget)
    kind = "TEMP MACRO" if temporary else "MACRO"
    for signature, (body, allowed) in macros.items():
        query = body.format(**names, u=_draw(sample_id, "seed"), tie=_draw(sample_id, "0"))
        checks = " AND ".join(_check(signature.partition("(")[0], name, *each) for name, each in allowed.items())
        connection.execute(
            f"CREATE OR REPLACE {kind} {signature} AS TABLE SELECT * FROM ({query}) WHERE (SELECT {checks})"
        )


def _integer(low: int, high: int = LARGEST_INTEGER) -> Allowed:
    """Whole numbers of a range; a cast to BIGINT alone would round others."""
    is_whole = "{0} = floor({0}) AND TRY_CAST({1} AS BIGINT)"
    return f"{is_whole} BETWEEN {low} AND {high}", f"an integer from {low} to {high}"


def _check(macro: str, name: str, condition: str, allowed: str) -> str:
    """SQL that is true where the argument may be used, and fails where it may not.

    As a subquery without a table it is asked once, and not where DuckDB knows beforehand that nothing is selected, as
    by an empty table or a comparison with NULL: so arguments stand in the macros within `coalesce`.
    """
    number = condition.format(f"TRY_CAST({name} AS DOUBLE)", name)
    said = duck.quote_literal(f" is not allowed; it must be {allowed}")
    shown = f"coalesce(CAST({name} AS VARCHAR), 'NULL')"
    failing = f"error({duck.quote_literal(f'{macro}: {name}=')} || {shown} || {said})"
    return f"CASE WHEN coalesce({number}, false) THEN true ELSE {failing} END"


def _draw(sample_id: str, seed: str) -> str:
    """52 bits of md5(seed:id) as the middle of their interval, so that it is neither 0 nor 1."""
    digest = f"md5_number_lower(CAST(coalesce(TRY_CAST({seed} AS BIGINT), 0) AS VARCHAR) || ':' || {sample_id})"
    return f"((CAST({digest} >> 12 AS DOUBLE) + 0.5e0) / 4503599627370496e0)"


def _rows(columns: Sequence[str]) -> str:
    """All columns of `samples AS s`, those that have a name of `ADDED` renamed."""
    taken = {name.casefold() for name in columns}
    renamed = []
    for name in columns:
        if name.casefold() in ADDED:
            other = duck.quote_identifier(_free_name(f"original_{name}", taken))
            renamed.append(f"{duck.quote_identifier(name)} AS {other}")
    return f"s.* RENAME ({', '.join(renamed)})" if renamed else "s.*"


def _free_name(name: str, taken: Set[str]) -> str:
    """`name`, with as many `original_` before it as it takes to be none of `taken` (in lower case)."""
    return name if name.casefold() not in taken else _free_name(f"original_{name}", taken)


_CURATED = "SELECT {rows} FROM samples AS s WHERE s.sample_weight >= coalesce(TRY_CAST(threshold AS FLOAT), 0)"

_TOP_K = """
WITH weighed AS NOT MATERIALIZED (
    SELECT s.domain AS domain, s.sample_weight AS w, {tie} AS u, {id} AS id
    FROM samples AS s WHERE s.sample_weight IS NOT NULL AND {id} IS NOT NULL),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY domain ORDER BY w DESC, u, id) AS place,
        count(*) OVER (PARTITION BY domain) AS num_rows FROM weighed),
last_taken AS (
    SELECT * FROM ranked WHERE place = least(num_rows, ceil(TRY_CAST(fraction AS DOUBLE) * num_rows - 1e-9)))
SELECT {rows} FROM samples AS s JOIN last_taken AS l ON l.domain = s.domain
WHERE {id} IS NOT NULL
    AND (s.sample_weight > l.w OR (s.sample_weight = l.w AND row({tie}, {id}) <= row(l.u, l.id)))
"""

_WEIGHTED_SAMPLE = """
WITH keyed AS NOT MATERIALIZED (
    SELECT -ln({u}) / CAST(s.sample_weight AS DOUBLE) AS key, {id} AS id
    FROM samples AS s WHERE s.sample_weight > 0 AND {id} IS NOT NULL),
last_taken AS MATERIALIZED (
    SELECT row(key, id) AS place FROM keyed ORDER BY key, id
    LIMIT 1 OFFSET greatest(coalesce(TRY_CAST(n AS BIGINT), 1), 1) - 1)
SELECT {rows} FROM samples AS s
WHERE s.sample_weight > 0 AND {id} IS NOT NULL AND coalesce(
    row(-ln({u}) / CAST(s.sample_weight AS DOUBLE), {id}) <= (SELECT place FROM last_taken), true)
"""

_EXPECTED = "least(TRY_CAST(max_repeats AS DOUBLE), coalesce(TRY_CAST(factor AS DOUBLE), 1) * s.sample_weight)"
_ROUNDED = f"CAST(floor({_EXPECTED}) AS INTEGER) + CAST({{u}} < {_EXPECTED} - floor({_EXPECTED}) AS INTEGER)"
_REPEATS = f"SELECT {{rows}}, {_ROUNDED} AS repeats FROM samples AS s WHERE s.sample_weight > 0 AND {_ROUNDED} > 0"

_QUANTILES = """
WITH weighed AS NOT MATERIALIZED (
    SELECT s.domain AS domain, s.sample_weight AS w, {tie} AS u, {id} AS id
    FROM samples AS s WHERE s.sample_weight IS NOT NULL AND {id} IS NOT NULL),
ranked AS (
    SELECT *, 1 + (row_number() OVER (PARTITION BY domain ORDER BY w, u, id) - 1)
        * coalesce(TRY_CAST(buckets AS BIGINT), 1) // count(*) OVER (PARTITION BY domain) AS bucket FROM weighed),
starts AS (SELECT domain, bucket, min(row(w, u, id)) AS place FROM ranked GROUP BY domain, bucket),
edges AS (
    SELECT domain, list(bucket ORDER BY bucket) AS buckets_found, list(place ORDER BY bucket) AS places
    FROM starts GROUP BY domain)
SELECT {rows}, s.domain || '/q' || e.buckets_found[len(list_filter(
    e.places, lambda place: place <= row(s.sample_weight, {tie}, {id})))] AS bucket
FROM samples AS s JOIN edges AS e ON e.domain = s.domain
WHERE s.sample_weight IS NOT NULL AND {id} IS NOT NULL
"""

_ALLOWED_SHARES: Allowed = (
    "len(list_filter(map_values(CAST({1} AS MAP(VARCHAR, DOUBLE))), "
    "lambda share: NOT coalesce(isfinite(share) AND share >= 0, false))) = 0 "
    "AND list_max(map_values(CAST({1} AS MAP(VARCHAR, DOUBLE)))) > 0",
    "a map of domains to numbers of at least 0, one of them above 0",
)
_SHARES = """
SELECT entry.key AS part, coalesce(TRY_CAST(tokens AS DOUBLE), 1) * entry.value / sum(entry.value) OVER () AS budget
FROM (SELECT unnest(map_entries(CAST(shares AS MAP(VARCHAR, DOUBLE)))) AS entry)
"""


def _budgeted(part: str, budgets: str) -> str:
    """A macro that fills the budget of every part: finds the first copy that exceeds it, takes those before.

    Args:
        part: SQL for the part that a row of `samples AS s` is in.
        budgets: a query (part, budget in tokens); rows of other parts are not selected.
    """
    octave = f"CAST(floor(log2(key) * {_KEYS_PER_OCTAVE}) AS INTEGER)"
    return f"""
WITH budgets AS MATERIALIZED ({budgets}),
copies AS NOT MATERIALIZED (
    SELECT part, id, tokens_of_row, (c.range + u) / w AS key FROM (
        SELECT {part} AS part, {{id}} AS id, {{u}} AS u, CAST(s.sample_weight AS DOUBLE) AS w,
            t.num_tokens AS tokens_of_row
        FROM samples AS s JOIN {TOKENS} AS t ON t.sample_id = {{id}} WHERE s.sample_weight > 0),
        range(coalesce(TRY_CAST(max_repeats AS BIGINT), 1)) AS c),
bins AS (SELECT part, {octave} AS bin, sum(tokens_of_row) AS bin_tokens FROM copies GROUP BY ALL),
sums AS (SELECT *, sum(bin_tokens) OVER (PARTITION BY part ORDER BY bin) AS up_to FROM bins),
ends AS MATERIALIZED (
    SELECT part, min(bin) AS bin, min(up_to - bin_tokens) AS so_far, any_value(budget) AS budget
    FROM sums JOIN budgets USING (part) WHERE up_to > budget GROUP BY part),
last_bin AS (
    SELECT part, struct_pack(key := key, id := id) AS place, budget,
        so_far + sum(tokens_of_row) OVER (PARTITION BY part ORDER BY key, id) AS up_to
    FROM copies JOIN ends USING (part) WHERE {octave} = bin),
beyond AS (SELECT part, min(place) AS place FROM last_bin WHERE up_to > budget GROUP BY part),
limits AS MATERIALIZED (SELECT part, place.key AS key, place.id AS id FROM budgets LEFT JOIN beyond USING (part)),
drawn AS NOT MATERIALIZED (
    SELECT {{rows}}, t.num_tokens AS num_tokens, struct_pack(
        id := {{id}}, u := {{u}}, w := CAST(s.sample_weight AS DOUBLE), end_key := l.key, end_id := l.id,
        sure := greatest(0, least(max_repeats, floor(l.key * CAST(s.sample_weight AS DOUBLE) - {{u}})) - 1)) AS {{own}}
    FROM samples AS s JOIN {TOKENS} AS t ON t.sample_id = {{id}} JOIN limits AS l ON l.part = {part}
    WHERE s.sample_weight > 0)
SELECT * EXCLUDE ({{own}}), {_num_copies()} AS repeats FROM drawn
WHERE {{own}}.end_key IS NULL OR {_is_before("0")}
"""


def _num_copies() -> str:
    """How many copies of a row come before the end: all but two are sure by division, the rest are looked at."""
    sure = "{own}.sure"
    looked_at = [f"CAST({sure} + {j} < max_repeats AND {_is_before(f'({sure} + {j})')} AS INTEGER)" for j in range(3)]
    return (
        f"CAST(CASE WHEN {{own}}.end_key IS NULL THEN max_repeats ELSE {sure} + {' + '.join(looked_at)} END AS INTEGER)"
    )


def _is_before(copy: str) -> str:
    key = f"(({copy} + {{own}}.u) / {{own}}.w)"
    return f"({key} < {{own}}.end_key OR ({key} = {{own}}.end_key AND {{own}}.id < {{own}}.end_id))"
