from hap.monitoring.findings import Finding, ranked


def finding(cause, severity, **figures):
    return Finding(cause=cause, severity=severity, said=cause, **figures)


def test_findings_are_ranked_by_severity_then_by_how_far_beyond_the_limit():
    slight, plain = (
        finding("input:cand_price", "ticket", value=0.2, limit=0.1),
        finding("input:cand_quality", "ticket", value=0.9, limit=0.1),
    )
    woken, told = finding("labels:outage", "page"), finding("staleness:light", "info", value=9, limit=1)
    assert ranked([told, slight, woken, plain]) == [woken, plain, slight, told]


def test_a_finding_without_a_figure_stands_at_its_limit():
    assert finding("labels:outage", "page").excess == 1.0 and finding("x:y", "info", value=3.0, limit=2.0).excess == 1.5


def test_the_kind_is_what_the_runbook_has_a_line_for():
    assert finding("input:cand_price", "page").to_json()["kind"] == "input"
