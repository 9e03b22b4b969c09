package e2e

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"
	"go.podman.io/image/v5/signature/sigstore"
)

// sigstoreKey makes a pair of keys as cosign does: NAME.key and NAME.pub. No tool that can be had everywhere does it.
func sigstoreKey(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1 || len(args) == 2, "sigstorekey NAME [PASSPHRASE]")
	var passphrase []byte
	if len(args) == 2 {
		passphrase = []byte(args[1])
	}
	pair, err := sigstore.GenerateKeyPair(passphrase)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pair.PrivateKey, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), pair.PublicKey, 0o644))
}
