package ops

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.podman.io/image/v5/signature"

	"github.com/imgfs/imgfs/imgsrc"
)

const (
	gpgTime  = time.Minute // how long gpg may take: a token can want to be touched
	gpgBytes = 1 << 20     // of what it prints
)

// A gpg signs with the program of that name, by the keys and the agent of the user who mounted. The library's own signing
// takes cgo. Nobody is asked for a passphrase: there is no terminal here.
type gpg struct {
	ctx     context.Context // of the push
	program string
}

var _ signature.SigningMechanism = (*gpg)(nil)

// newGPG finds the program, and tries whether it signs with the key, which is better known before a push than after it.
func newGPG(ctx context.Context, key string) (*gpg, error) {
	for _, name := range []string{"gpg", "gpg2"} {
		if program, err := exec.LookPath(name); err == nil {
			g := &gpg{ctx, program}
			_, err := g.Sign([]byte("imgfs\n"), key)
			return g, err
		}
	}
	return nil, fail(imgsrc.ErrUnsupported, "sign-by=%s: there is no gpg: install GnuPG", quote(key))
}

// gpgVariables are what of the environment concerns gpg. The rest may have credentials in it.
var gpgVariables = []string{"HOME", "GNUPGHOME", "PATH", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "TMPDIR"}

// Sign returns input as a signed OpenPGP message. Errors: imgsrc.ErrNotFound if there is no such key; imgsrc.ErrDenied if it
// has a passphrase that gpg-agent does not know; ETIMEDOUT.
func (g *gpg) Sign(input []byte, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(g.ctx, gpgTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.program,
		"--batch", "--no-tty", "--quiet", "--pinentry-mode", "error", "--local-user", key, "--output", "-", "--sign")
	cmd.Env = []string{"LC_ALL=C"}
	for _, name := range gpgVariables {
		if value, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	var message, said limitedBuffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &message, &said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil && message.Len() > 0:
		return message.Bytes(), nil
	case g.ctx.Err() != nil:
		return nil, context.Cause(g.ctx)
	case ctx.Err() != nil:
		return nil, fail(syscall.ETIMEDOUT, "signing with %s: gpg took longer than %s", quote(key), gpgTime)
	}
	return nil, gpgFailure(key, said.String())
}

// gpgFailure says what gpg's words mean.
func gpgFailure(key, said string) error {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(said, w) })
	}
	switch {
	case has("No pinentry", "Operation cancelled", "Bad passphrase", "No passphrase given", "Inappropriate ioctl", "Passphrase"):
		return fail(imgsrc.ErrDenied, "signing with %s: the key has a passphrase, and nobody can be asked for it here: make it known to gpg-agent, as by signing something in a terminal", quote(key))
	case has("No secret key", "No such file", "secret key not available"):
		return fail(imgsrc.ErrNotFound, "signing with %s: gpg has no such secret key: see gpg --list-secret-keys", quote(key))
	}
	var last string
	for line := range strings.Lines(said) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "gpg: "); ok {
			last = text
		}
	}
	if last == "" {
		last = "it failed, and says nothing"
	}
	return fail(nil, "signing with %s: gpg: %s", quote(key), last)
}

// Close implements signature.SigningMechanism.
func (g *gpg) Close() error { return nil }

// SupportsSigning implements signature.SigningMechanism.
func (g *gpg) SupportsSigning() error { return nil }

var errOnlySigns = errors.New("this only makes signatures")

// Verify implements signature.SigningMechanism. It is not called.
func (g *gpg) Verify([]byte) ([]byte, string, error) { return nil, "", errOnlySigns }

// UntrustedSignatureContents implements signature.SigningMechanism. It is not called.
func (g *gpg) UntrustedSignatureContents([]byte) ([]byte, string, error) {
	return nil, "", errOnlySigns
}

// A limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), gpgBytes-min(gpgBytes, b.Len()))])
	return len(p), nil
}
