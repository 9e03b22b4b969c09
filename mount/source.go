package mount

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxSource is how long the source of a mount may be, in bytes: what fsconfig(2) takes. mount(2) takes 4095.
const maxSource = 255

// sourceText is what the kernel is told about where a mount comes from: all sources as they were typed, or as many of
// them as there is room for.
func sourceText(sources []string) string {
	if text := strings.Join(sources, " "); len(text) <= maxSource {
		return text
	}
	text := ""
	for i, source := range sources {
		if i > 0 {
			source = text + ", " + source
		}
		if len(source)+len(moreText(len(sources)-i-1)) > maxSource {
			if i > 0 {
				return text + moreText(len(sources)-i)
			}
			source = cut(source, maxSource-len(moreText(len(sources)-1)))
		}
		text = source
	}
	return text
}

// moreText stands for n sources that there is no room for.
func moreText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

// cut shortens text to at most limit bytes, between two characters.
func cut(text string, limit int) string {
	const dots = "..."
	end := limit - len(dots)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + dots
}
