package imgsrc

import (
	"fmt"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"
)

// maxName is how many bytes a directory entry may have.
const maxName = 255

var escaper, unescaper = escapers()

// escapers replace what cannot stand in a file name, or would make two lines of it in a list, and "%".
func escapers() (escaper, unescaper *strings.Replacer) {
	there, back := []string{"%", "%25", "/", "%2F"}, []string{"%25", "%", "%2F", "/", "%2E", "."}
	for c := range 0x80 {
		if s := string(rune(c)); c != 0 && !IsPrintable(s) {
			hex := fmt.Sprintf("%%%02X", c)
			there, back = append(there, s, hex), append(back, hex, s)
		}
	}
	return strings.NewReplacer(there...), strings.NewReplacer(back...)
}

// IsPrintable says whether a string has no control characters: it is one line, and does to a terminal what its letters say.
func IsPrintable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

// EscapeKey returns the file name for the key of an annotation or a label: "/" is %2F, "%" is %25, a line break is %0A and
// other control characters likewise, "." and ".." are %2E and %2E%2E, all else is itself. Not ok if the key is empty, holds
// NUL, or becomes longer than 255 bytes.
func EscapeKey(key string) (name string, ok bool) {
	name, ok = escape(key)
	return name, ok && len(name) <= maxName
}

// escape is EscapeKey without the bound.
func escape(key string) (name string, ok bool) {
	switch key {
	case "":
		return "", false
	case ".":
		return "%2E", true
	case "..":
		return "%2E%2E", true
	}
	return escaper.Replace(key), !strings.Contains(key, "\x00")
}

// UnescapeKey is the inverse of EscapeKey. Not ok if EscapeKey makes name of no key: each key has one name.
func UnescapeKey(name string) (key string, ok bool) {
	key = unescaper.Replace(name)
	again, ok := EscapeKey(key)
	return key, ok && again == name
}

// NamePath returns where the image of this name stands below images/. A full reference with a registry is split at its
// slashes, the tag in the last element; any other name ("latest", "a/b:c") is one element, escaped as EscapeKey does. Not
// ok if the name is empty or holds NUL, or an element is longer than 255 bytes.
func NamePath(name string) (elems []string, ok bool) {
	path, ok := pathOf(name)
	if !ok {
		return nil, false
	}
	elems = strings.Split(path, "/")
	for _, e := range elems {
		if len(e) > maxName {
			return nil, false
		}
	}
	return elems, true
}

// NameFromPath is the inverse of NamePath. Not ok if NamePath makes elems of no name.
func NameFromPath(elems []string) (name string, ok bool) {
	if len(elems) == 1 {
		name = unescaper.Replace(elems[0])
	} else {
		name = strings.Join(elems, "/")
	}
	again, ok := NamePath(name)
	return name, ok && slices.Equal(again, elems)
}

// pathOf is NamePath without the bound, joined. A full reference is its own path: its grammar has no character that
// would need escaping, and no "." or ".." between slashes.
func pathOf(name string) (path string, ok bool) {
	if isFullReference(name) {
		return name, true
	}
	return escape(name)
}

// isFullReference says whether name is a reference that names its registry, in the form that normalising leaves alone.
// The registry is told from a repository's first component as Docker does it: by a dot, a colon, or being localhost.
func isFullReference(name string) bool {
	host, rest, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return false
	}
	if isPlainReference(host, rest) {
		return true
	}
	ref, err := reference.ParseNormalizedNamed(name)
	return err == nil && ref.String() == name
}

// IsRepository says whether a path is a registry's host, or one and the beginning of a repository's path there.
func IsRepository(path string) bool {
	path += "/x/y" // which leaves nothing for normalising to add
	named, err := reference.ParseNormalizedNamed(path)
	return err == nil && reference.IsNameOnly(named) && named.Name() == path
}

// IsRemoteReference says whether a path is a reference with a registry and a tag or a digest.
func IsRemoteReference(path string) bool {
	host, _, ok := strings.Cut(path, "/")
	if !ok || !IsRepository(host) {
		return false
	}
	named, err := reference.ParseNormalizedNamed(path)
	return err == nil && !reference.IsNameOnly(named)
}

// isPlainReference recognises most full references without the regular expressions of the reference grammar, which
// cost ten times as much: a store of ten thousand names is laid out anew after each change. It never accepts what the
// grammar does not.
func isPlainReference(host, rest string) bool {
	repo, tag, tagged := strings.Cut(rest, ":")
	if tagged && (len(tag) > 128 || tag == "" || !isRun(tag, "_", "_.-", true)) {
		return false
	}
	hostname, port, hasPort := strings.Cut(host, ":")
	if hasPort && (port == "" || strings.Trim(port, "0123456789") != "") {
		return false
	}
	// Normalising changes both of these.
	if host == "index.docker.io" || host == "docker.io" && !strings.Contains(repo, "/") {
		return false
	}
	return len(host)+len(repo) < maxName && isRun(hostname, "", ".-", true) && isRun(repo, "", "/._-", false)
}

// isRun says whether s consists of letters and digits, with single separators between them, but not at the ends. Bytes
// in word count as letters.
func isRun(s, word, separators string, upper bool) bool {
	after := false // the byte before is no separator
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', upper && c >= 'A' && c <= 'Z', strings.IndexByte(word, c) >= 0:
			after = true
		case after && strings.IndexByte(separators, c) >= 0:
			after = false
		default:
			return false
		}
	}
	return after
}
