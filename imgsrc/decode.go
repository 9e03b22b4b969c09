package imgsrc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	// Which algorithms go-digest can check depends on what the program links: the registered ones are always among them.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
)

// maxEntries bounds the lists in a manifest or config: layers, history, words of a command. Real ones have some
// hundred at most, and four megabytes of "{}," would become a hundred times as much in memory.
const maxEntries = 10_000

// given says whether a value is in the JSON: neither left out nor null.
func given(raw json.RawMessage) bool {
	return len(raw) > 0 && string(raw) != "null"
}

// decodeList reads a JSON array; null is an empty one. The array is read entry by entry, so that a huge one is refused
// before it is in memory.
func decodeList[T any](raw json.RawMessage) ([]T, error) {
	if !given(raw) {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('[') {
		return nil, errors.New("not a list")
	}
	list := []T{}
	for dec.More() {
		if len(list) == maxEntries {
			return nil, fmt.Errorf("more than %d entries", maxEntries)
		}
		var v *T
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(list), err)
		}
		if v == nil {
			return nil, fmt.Errorf("entry %d is null", len(list))
		}
		list = append(list, *v)
	}
	return list, nil
}

// words is a command: a list of words, or a single string, which Docker takes as a list of one.
type words []string

func (w *words) UnmarshalJSON(b []byte) (err error) {
	if b[0] == '"' {
		*w = words{""}
		return json.Unmarshal(b, &(*w)[0])
	}
	*w, err = decodeList[string](b)
	return err
}

// stringMap is a JSON object of strings. A null is not a string.
type stringMap map[string]string

func (m *stringMap) UnmarshalJSON(b []byte) error {
	var values map[string]*string
	if err := json.Unmarshal(b, &values); err != nil {
		return err
	}
	if values == nil {
		return nil
	}
	*m = make(stringMap, len(values))
	for k, v := range values {
		if v == nil {
			return fmt.Errorf("the value of %q is null", k)
		}
		(*m)[k] = *v
	}
	return nil
}

// plain takes Go's type names out of an error of encoding/json, for people who read JSON and not this program.
func plain(err error) error {
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return err
	}
	if te.Field == "" {
		return fmt.Errorf("a JSON %s has no place there", te.Value)
	}
	return fmt.Errorf("a JSON %s has no place in %s", te.Value, te.Field)
}

// encodeJSON is the form of every JSON file that is made here: two spaces of indentation, sorted keys, a final newline,
// and "<" as itself, because people read and grep these files.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding JSON: %w", err)
	}
	return buf.Bytes(), nil
}

// timeText is a time of RFC 3339 with the digits that it was written with.
type timeText struct {
	text string
	time time.Time
}

func (t *timeText) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &t.text); err != nil {
		return err
	}
	return t.time.UnmarshalText([]byte(t.text))
}

func (t timeText) MarshalJSON() ([]byte, error) { return json.Marshal(t.text) }

// checkDigest returns an error unless d has the form of a digest. An algorithm that is not known here is none: whether
// the bytes can be verified is for the source to say.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil && !errors.Is(err, digest.ErrDigestUnsupported) {
		return fmt.Errorf("%q is no digest: %w", d, err)
	}
	return nil
}
