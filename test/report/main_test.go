package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const events = `{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"=== RUN   TestBad\n"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"loud\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestSkip","Output":"no podman\n"}
{"Action":"skip","Package":"p","Test":"TestSkip"}
{"Action":"output","Package":"p","Test":"TestDead","Output":"last words\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
{"Action":"skip","Package":"empty"}
{"ImportPath":"q","Action":"build-output","Output":"q.go:1: broken\n"}
not json
`
	var out strings.Builder
	skipped := report(strings.NewReader(events), &out)
	if want := "loud\nFAIL\tp\t0.1s\nq.go:1: broken\nnot json\nlast words\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
	if len(skipped) != 1 || skipped[0] != (test{"p", "TestSkip"}) {
		t.Errorf("skipped %v, want TestSkip alone", skipped)
	}
}
