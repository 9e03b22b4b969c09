package registry

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// Trust returns what says whether a registry's host, with or without a port, lies in networks in which no certificate is
// asked for, with all its addresses. Without networks that is the loopback interface, for which no name is looked up.
func Trust(networks []netip.Prefix) func(host string) bool {
	lookUp := networks != nil
	if !lookUp {
		networks = loopback
	}
	return func(host string) bool {
		addresses := addressesOf(host, lookUp)
		return len(addresses) > 0 && !slices.ContainsFunc(addresses, func(a netip.Addr) bool {
			return !slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
		})
	}
}

// lookUpTime is how long a name server may take to say whether a registry lies in a network.
const lookUpTime = 2 * time.Second

// addressesOf returns the addresses of a host, none where they are not known.
func addressesOf(host string, lookUp bool) []netip.Addr {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}
	}
	if host == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	if !lookUp {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookUpTime)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil
	}
	return addresses
}
