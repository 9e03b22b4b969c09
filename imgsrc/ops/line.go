package ops

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	compressiontypes "go.podman.io/image/v5/pkg/compression/types"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A tagLine is one line written to tags.
type tagLine struct {
	name   string // as it was typed
	remove bool
}

// parseTags parses the lines of a write to tags. Error: imgsrc.ErrInvalid.
func parseTags(lines [][]string) ([]tagLine, error) {
	tags := make([]tagLine, len(lines))
	for i, words := range lines {
		if len(words) != 1 {
			return nil, fail(imgsrc.ErrInvalid, "line %d: %d words: write one reference a line, -REFERENCE to remove it", i+1, len(words))
		}
		t := tagLine{name: words[0]}
		if rest, ok := strings.CutPrefix(t.name, "-"); ok {
			t = tagLine{name: rest, remove: true}
		} else {
			t.name = strings.TrimPrefix(t.name, "+")
		}
		if t.name == "" {
			return nil, fail(imgsrc.ErrInvalid, "line %d: %s names nothing: write REFERENCE, +REFERENCE or -REFERENCE", i+1, quote(words[0]))
		}
		tags[i] = t
	}
	return tags, nil
}

// A pushLine is one line written to push.
type pushLine struct {
	dest        destination
	format      string                      // a manifest's media type; empty: the image's own where the destination takes it
	compression *compressiontypes.Algorithm // nil: as the destination does it
	plain       bool                        // compression=none
	authFile    string                      // absolute; empty: the mount's
	tlsVerify   types.OptionalBool
	signer      *signer // nil: nobody signs
	all         bool
	wait        bool
}

// pushKeys are the keys that may follow a destination, in the order in which error texts list them.
var pushKeys = []struct {
	name   string
	values []string // nil: see set
	set    func(p *pushLine, value string, resolve pathResolver) error
}{
	{"format", []string{"oci", "v2s2", "v2s1"}, func(p *pushLine, v string, _ pathResolver) error {
		p.format = map[string]string{
			"oci":  imgspecv1.MediaTypeImageManifest,
			"v2s2": manifest.DockerV2Schema2MediaType,
			"v2s1": manifest.DockerV2Schema1SignedMediaType,
		}[v]
		return nil
	}},
	{"compression", []string{"gzip", "zstd", "zstd:chunked", "none"}, func(p *pushLine, v string, _ pathResolver) error {
		if v == "none" {
			p.plain = true
			return nil
		}
		algorithm, err := compression.AlgorithmByName(v)
		p.compression = &algorithm
		return err
	}},
	{"all", []string{"true", "false"}, func(p *pushLine, v string, _ pathResolver) error { p.all = v == "true"; return nil }},
	{"authfile", nil, func(p *pushLine, v string, resolve pathResolver) (err error) {
		p.authFile, err = resolve.existing(v)
		return err
	}},
	{"tls-verify", []string{"true", "false"}, func(p *pushLine, v string, _ pathResolver) error {
		p.tlsVerify = types.NewOptionalBool(v == "true")
		return nil
	}},
	{"sign-by", nil, func(p *pushLine, v string, resolve pathResolver) (err error) {
		p.signer, err = parseSigner(v, resolve)
		return err
	}},
	{"wait", []string{"true", "false"}, func(p *pushLine, v string, _ pathResolver) error { p.wait = v == "true"; return nil }},
}

// parsePushes parses the lines of a write to push, paths being resolved by resolve. Errors: imgsrc.ErrInvalid;
// ErrUnsupported for what a destination cannot do; ErrExists if an archive is there already; what looking at a path says.
func parsePushes(lines [][]string, resolve pathResolver) ([]pushLine, error) {
	pushes := make([]pushLine, len(lines))
	for i, words := range lines {
		p, err := parsePush(words, resolve)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		pushes[i] = p
	}
	return pushes, nil
}

func parsePush(words []string, resolve pathResolver) (pushLine, error) {
	p := pushLine{wait: true}
	if len(words) == 0 {
		return p, fail(imgsrc.ErrInvalid, "no destination: write [TRANSPORT:]DESTINATION [KEY=VALUE...]")
	}
	dest, err := parseDestination(words[0], resolve)
	if err != nil {
		return p, err
	}
	p.dest = dest
	var given []string
	for _, word := range words[1:] {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return p, fail(imgsrc.ErrInvalid, "%s is no KEY=VALUE; known keys are %s", quote(word), knownKeys())
		}
		if slices.Contains(given, name) {
			return p, fail(imgsrc.ErrInvalid, "%s is given twice", name)
		}
		given = append(given, name)
		if err := p.set(name, value, resolve); err != nil {
			return p, err
		}
	}
	return p, p.check()
}

func (p *pushLine) set(name, value string, resolve pathResolver) error {
	for _, k := range pushKeys {
		if k.name != name {
			continue
		}
		if k.values != nil && !slices.Contains(k.values, value) {
			return fail(imgsrc.ErrInvalid, "%s=%s: must be one of %s", name, redactWord(value), strings.Join(k.values, ", "))
		}
		return k.set(p, value, resolve)
	}
	return fail(imgsrc.ErrInvalid, "unknown key %s; known keys are %s", quoteKey(name, value), knownKeys())
}

// check fails if the destination cannot do what the keys ask for, or if something is in its way.
func (p *pushLine) check() error {
	kind := p.dest.kind()
	if p.format != "" && !slices.Contains(kind.formats, p.format) {
		return fail(imgsrc.ErrUnsupported, "%s cannot hold this format: leave format= out", kind.name)
	}
	if p.compression != nil && !kind.compresses {
		return fail(imgsrc.ErrUnsupported, "%s keeps no compressed layers: leave compression= out", kind.name)
	}
	if p.compression != nil && p.compression.Name() != compressiontypes.GzipAlgorithmName && p.format != "" && p.format != imgspecv1.MediaTypeImageManifest {
		return fail(imgsrc.ErrUnsupported, "compression=%s needs format=oci", p.compression.Name())
	}
	if p.all && !kind.indexes {
		return fail(imgsrc.ErrUnsupported, "all=true: %s holds single images only", kind.name)
	}
	if p.signer != nil {
		if err := p.signer.check(p); err != nil {
			return err
		}
	}
	return p.dest.check()
}

func knownKeys() string {
	names := make([]string, len(pushKeys))
	for i, k := range pushKeys {
		names[i] = k.name + "="
		if k.values != nil {
			names[i] += strings.Join(k.values, "|")
		} else if k.name == "authfile" {
			names[i] += "PATH"
		} else {
			names[i] += "KEY|sigstore:PATH"
		}
	}
	return strings.Join(names, " ")
}

// quote is how a word from outside stands in an error text.
func quote(word string) string { return strconv.Quote(redactWord(word)) }

// quoteKey is how an unknown key stands in an error text. Its value is not shown: the keys that other tools have and this
// one has not are for passwords, too. Nor is what precedes the = of a password.
func quoteKey(name, value string) string {
	if word := name + "=" + value; strings.Contains(name, ":") && redactWord(word) != word {
		return quote(word)
	}
	return quote(name)
}
