package ops

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText is how many bytes of an error text are kept: a registry chooses what it answers.
const maxText = 4 << 10

var (
	// digestTail is what may follow an @ without what precedes it being somebody's name and password: a digest, with = where a
	// lookaside has it.
	digestTail = regexp.MustCompile(`^[a-z0-9+._-]+[:=][0-9a-fA-F]{32,}`)
	// query is a URL's query: upload URLs carry signatures in it.
	query = regexp.MustCompile(`(://[^\s"'?]*)\?[^\s"']*`)
	// bodyStart is how the library quotes what a token server answered when that was no JSON.
	bodyStart = regexp.MustCompile(`body start "(?:[^"\\]|\\.)*"`)
	// scheme is what may precede the :// of a URL.
	scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*$`)
	// word is what is looked at for userinfo.
	word = regexp.MustCompile("[^\\s\"'`(),;]+")
	// parted is userinfo with something in the password that parts words.
	parted = regexp.MustCompile("[^\\s\"@/]+:[^\\s\"@/]*[`'(),;][^\\s\"@/]*@")
)

// redact returns text without what may be credentials: userinfo and queries of URLs, and user:password@host without a
// scheme. It errs on the side of taking out too much.
func redact(text string) string {
	text = bodyStart.ReplaceAllString(text, "unreadable answer")
	text = query.ReplaceAllString(text, "$1")
	return word.ReplaceAllStringFunc(redactParted(text), redactWord)
}

func redactParted(text string) string {
	var kept strings.Builder
	last := 0
	for _, at := range parted.FindAllStringIndex(text, -1) {
		if !digestTail.MatchString(text[at[1]:]) {
			kept.WriteString(text[last:at[0]] + "***@")
			last = at[1]
		}
	}
	return kept.String() + text[last:]
}

// redactWord is redact for one word as it was typed, which may have quotes and blanks in it.
func redactWord(w string) string {
	at := strings.LastIndexByte(w, '@')
	if at < 0 {
		return w
	}
	head, tail := w[:at], w[at+1:]
	if digestTail.MatchString(tail) {
		return redactWord(head) + "@" + tail
	}
	i := strings.Index(head, "://")
	if i >= 0 && !scheme.MatchString(head[:i]) {
		i = -1 // what precedes it may be a secret too
	}
	if name, _, ok := strings.Cut(head, ":"); ok && i < 0 && kinds[name] != nil && kinds[name] != registryKind {
		return w // a path or a store, in which @ and : mean nothing of the kind
	}
	if i < 0 {
		if !strings.Contains(head, ":") {
			return w
		}
		i = -len("://")
	}
	return head[:i+len("://")] + "***@" + tail
}

// oneLine makes a text that came from anywhere fit for a line of a log: redacted, without control characters, and of
// bounded length.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text)
	text = redact(strings.Join(strings.Fields(text), " "))
	if len(text) > maxText {
		cut := maxText
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "…"
	}
	return text
}
