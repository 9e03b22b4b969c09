package registry

import (
	"log/slog"
	"net/netip"
	"time"

	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options are what Open needs.
type Options struct {
	// Ref is what stands behind docker://: HOST[/REPO[:TAG|@DIGEST]].
	Ref string
	// Cache holds decompressed layers; it stays open when the source is closed. Nil: Diff is ErrUnsupported.
	Cache *layer.Cache
	// CacheDir is the directory that Cache was opened with: manifests and the layers' own bytes are kept there too. Empty:
	// manifests in memory, and layers in files without a name.
	CacheDir string
	// AuthFile has the credentials. Empty: where podman looks for them.
	AuthFile string
	// TLSVerify says whether the registry must have a certificate that this machine trusts; nil: as registries.conf has it
	// for this registry.
	TLSVerify *bool
	// Insecure are networks in which no certificate is asked for, and HTTP will do, where TLSVerify is nil. Nil: the
	// loopback interface. Otherwise the addresses of a name are looked up, and count if all of them are in there.
	Insecure []netip.Prefix
	// Asked lists nothing but what Resolve was asked for. Ref is then a host, and need not answer.
	Asked bool
	// Offline serves what is in CacheDir, and asks nobody.
	Offline bool
	// Platform is which image of an index is listed beside it. Zero: the one for this machine.
	Platform imgsrc.Platform
	// Fetching is told what comes. Nil: nobody wants to know.
	Fetching Fetching
	// Log gets what goes wrong while nobody waits for it. Nil discards it.
	Log *slog.Logger

	test *testOptions
}

// testOptions are what tests change.
type testOptions struct {
	sys      *types.SystemContext
	certDirs []string
	limits   limits
	every    time.Duration
}

// complete returns the options with the product's own values where a test says nothing.
func (o *testOptions) complete() *testOptions {
	if o == nil {
		o = &testOptions{}
	}
	if o.limits == (limits{}) {
		o.limits = defaultLimits
	}
	if o.certDirs == nil {
		o.certDirs = defaultCertDirs()
	}
	if o.every == 0 {
		o.every = lookEvery
	}
	return o
}
