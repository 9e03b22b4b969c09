package ops

import (
	"fmt"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A pullLine is one line written to pull or load.
type pullLine struct {
	text       string            // the reference or the path, as it was typed
	candidates []reference.Named // what may be meant by it, the first choice first; none for a place on this machine
	place      string            // a path, absolute, or a TRANSPORT:PLACE; empty for a registry
	asked      string            // the name in the place, of which alone it is to be pulled; empty: all that is there
	name       string            // of what is loaded; empty: what it is called there
	platform   *imgsrc.Platform  // nil: the mount's
	authFile   string
	tlsVerify  types.OptionalBool
	all        bool
	dryRun     bool
	wait       bool
}

// localTransports are those that pull takes beside registries, as podman pull does. A path follows them, but for the
// last one.
var localTransports = []string{"oci", "oci-archive", "docker-archive", "dir", "docker-daemon"}

// A lineKey is a key that may follow the first word of a line.
type lineKey struct {
	name  string
	value string // what it takes, for texts; "true|false" is checked
	set   func(p *pullLine, value string, resolve pathResolver) error
}

const boolValue = "true|false"

var (
	waitKey = lineKey{"wait", boolValue, func(p *pullLine, v string, _ pathResolver) error { p.wait = v == "true"; return nil }}

	pullKeys = []lineKey{
		{"platform", "OS/ARCHITECTURE[/VARIANT]", func(p *pullLine, v string, _ pathResolver) error {
			platform, err := imgsrc.ParsePlatform(v)
			if err != nil {
				return fail(imgsrc.ErrInvalid, "platform=%s: %s", redactWord(v), err)
			}
			p.platform = &platform
			return nil
		}},
		{"all", boolValue, func(p *pullLine, v string, _ pathResolver) error { p.all = v == "true"; return nil }},
		{"dry-run", boolValue, func(p *pullLine, v string, _ pathResolver) error { p.dryRun = v == "true"; return nil }},
		{"authfile", "PATH", func(p *pullLine, v string, resolve pathResolver) (err error) {
			p.authFile, err = resolve.existing(v)
			return err
		}},
		{"tls-verify", boolValue, func(p *pullLine, v string, _ pathResolver) error {
			p.tlsVerify = types.NewOptionalBool(v == "true")
			return nil
		}},
		waitKey,
	}
	loadKeys = []lineKey{
		{"name", "REFERENCE", func(p *pullLine, v string, _ pathResolver) error {
			if v == "" {
				return fail(imgsrc.ErrInvalid, "name= is empty")
			}
			p.name = v
			return nil
		}},
		waitKey,
	}
)

// parseArrivals parses the lines of a write to pull or load. Errors: imgsrc.ErrInvalid; what looking at a path says.
func parseArrivals(lines [][]string, keys []lineKey, resolve pathResolver, first func(p *pullLine, word string) error) ([]pullLine, error) {
	all := make([]pullLine, len(lines))
	for i, words := range lines {
		p := pullLine{text: words[0], wait: true}
		err := first(&p, words[0])
		if err == nil {
			err = p.setKeys(words[1:], keys, resolve)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		all[i] = p
	}
	return all, nil
}

func (p *pullLine) setKeys(words []string, keys []lineKey, resolve pathResolver) error {
	var given []string
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return fail(imgsrc.ErrInvalid, "%s is no KEY=VALUE; known keys are %s", quote(word), keyNames(keys))
		}
		if slices.Contains(given, name) {
			return fail(imgsrc.ErrInvalid, "%s is given twice", name)
		}
		given = append(given, name)
		at := slices.IndexFunc(keys, func(k lineKey) bool { return k.name == name })
		if at < 0 {
			return fail(imgsrc.ErrInvalid, "unknown key %s; known keys are %s", quoteKey(name, value), keyNames(keys))
		}
		if keys[at].value == boolValue && value != "true" && value != "false" {
			return fail(imgsrc.ErrInvalid, "%s=%s: must be true or false", name, redactWord(value))
		}
		if err := keys[at].set(p, value, resolve); err != nil {
			return err
		}
	}
	return nil
}

func keyNames(keys []lineKey) string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name+"="+k.value)
	}
	return strings.Join(names, " ")
}

// parsePulls parses the lines of a write to pull.
func (o *Ops) parsePulls(lines [][]string, resolve pathResolver) ([]pullLine, error) {
	return parseArrivals(lines, pullKeys, resolve, func(p *pullLine, word string) (err error) {
		transport, rest, ok := strings.Cut(word, ":")
		switch {
		case ok && transport == "docker-daemon":
			p.place, p.asked = word, rest
		case ok && slices.Contains(localTransports, transport):
			path, ref, named := strings.Cut(rest, ":")
			if path, err = resolve.place(path); err != nil {
				return err
			}
			p.place = transport + ":" + path
			if named {
				p.place, p.asked = p.place+":"+ref, ref
			}
		case ok && transport == "docker":
			name, ok := strings.CutPrefix(rest, "//")
			if !ok {
				return fail(imgsrc.ErrInvalid, "%s: write docker://HOST/REPOSITORY:TAG", quote(word))
			}
			named, err := reference.ParseDockerRef(name) // a short one is docker.io's there, for podman too
			if err != nil {
				return notReference(name, err)
			}
			p.candidates = []reference.Named{named}
		case ok && isTransport(transport): // though it may be an image's name with a tag, as to podman
			return fail(imgsrc.ErrUnsupported, "%s: cannot be pulled from; can be: docker:// %s", transport, strings.Join(localTransports, ": ")+":")
		default:
			p.candidates, err = o.candidates(word)
		}
		return err
	})
}

// notReference is the failure of what err says is no reference. What precedes an @ may be a password, unless a whole digest
// follows: that is not shown, and neither is err.
func notReference(name string, err error) error {
	if redactWord(name) != name {
		return fail(imgsrc.ErrInvalid, "%s has credentials before the @, or behind it a digest that is not whole (sha256: and 64 digits): "+
			"for credentials use `podman login`, or name a file with authfile=", quote(name))
	}
	return fail(imgsrc.ErrInvalid, "%s is not a reference: %s", quote(name), err)
}

// candidates returns what podman would try to pull for a name: itself if it names a registry; else the alias that
// registries.conf(5) has for it, and without one the name in each of the registries that are searched for unqualified
// names. A machine without any searches docker.io. A digest goes before a tag that is there too.
func (o *Ops) candidates(name string) ([]reference.Named, error) {
	full, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, notReference(name, err)
	}
	if !isShort(name) {
		return []reference.Named{full}, nil
	}
	repo, suffix := name, ":latest"
	if i := strings.IndexAny(name, ":@"); i >= 0 { // no port: there is no registry
		repo, suffix = name[:i], name[i:]
	}
	alias, _, err := sysregistriesv2.ResolveShortNameAlias(nil, repo)
	if err != nil {
		return nil, fail(imgsrc.ErrInvalid, "resolving %s: %s", quote(name), err)
	}
	if alias != nil {
		named, err := reference.ParseDockerRef(alias.Name() + suffix)
		return []reference.Named{named}, err
	}
	registries, err := sysregistriesv2.UnqualifiedSearchRegistries(nil)
	if err != nil {
		return nil, fail(imgsrc.ErrInvalid, "resolving %s: %s", quote(name), err)
	}
	if len(registries) == 0 {
		return []reference.Named{full}, nil
	}
	if mode, err := sysregistriesv2.GetShortNameMode(nil); err == nil && mode == types.ShortNameModeEnforcing && len(registries) > 1 {
		return nil, fail(imgsrc.ErrInvalid, "%s may be in any of %s, and registries.conf (short-name-mode) wants somebody to be asked: name the registry",
			quote(name), strings.Join(registries, ", "))
	}
	var all []reference.Named
	for _, registry := range registries {
		named, err := reference.ParseDockerRef(registry + "/" + repo + suffix)
		if err != nil {
			return nil, fail(imgsrc.ErrInvalid, "%s of registries.conf: %s", quote(registry), err)
		}
		all = append(all, named)
	}
	return all, nil
}
