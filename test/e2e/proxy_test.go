package e2e

import (
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgfs/imgfs/test/forward"
)

// startProxy starts a proxy that leads to one registry, whatever name is asked for. NAME becomes its address, and
// stopregistry stops it.
func startProxy(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	user := ""
	if len(args) == 4 && args[0] == "-user" {
		user, args = args[1], args[2:]
	}
	usage(ts, neg, args, len(args) == 2, "proxy [-user USER:PASSWORD] REGISTRY NAME")
	p := forward.Start(ts.Getenv(args[0]), user)
	s.registries[args[1]] = &registryServer{proxy: p}
	ts.Setenv(args[1], strings.TrimPrefix(p.Address(""), "http://"))
}

// proxied wants a proxy to have been asked for something since the last time, or not.
func proxied(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	usage(ts, false, args, len(args) == 2 && s.registries[args[0]] != nil && s.registries[args[0]].proxy != nil, "[!] proxied NAME TEXT")
	asked := s.registries[args[0]].proxy.Asked()
	if strings.Contains(asked, args[1]) == neg {
		ts.Fatalf("%s was asked for %q", args[0], asked)
	}
}
