package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// An object is a JSON object as it was written: all members, known or not, in their order. Unlike the structs of
// encoding/json it takes names exactly, so that what is read and what is changed are the same member.
type object []member

type member struct {
	name  string
	value json.RawMessage
}

// parseObject takes raw, which must be valid JSON, apart. The values are parts of raw: an index.json has thousands of entries and is
// read for each name that is given, so nothing is looked at twice.
func parseObject(raw []byte) (object, error) {
	o := object{}
	err := split(raw, '{', func(name string, value json.RawMessage) { o = append(o, member{name, value}) })
	if err != nil {
		return nil, errors.New("not an object")
	}
	return o, nil
}

// parseList takes raw, which must be valid JSON, apart. Null is an empty list.
func parseList(raw []byte) (list []json.RawMessage, err error) {
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil, nil
	}
	if err := split(raw, '[', func(_ string, value json.RawMessage) { list = append(list, value) }); err != nil {
		return nil, errors.New("not a list")
	}
	return list, nil
}

var errKind = errors.New("JSON of another kind")

// split calls each for the members of an object or the elements of a list, which begins with open.
func split(raw []byte, open byte, each func(name string, value json.RawMessage)) error {
	i := skipSpace(raw, 0)
	if i == len(raw) || raw[i] != open {
		return errKind
	}
	for i = skipSpace(raw, i+1); i < len(raw) && raw[i] != '}' && raw[i] != ']'; {
		var name string
		if open == '{' {
			end := endOfValue(raw, i)
			var err error
			if name, err = unquote(raw[i:end]); err != nil {
				return err
			}
			i = skipSpace(raw, skipSpace(raw, end)+1) // behind the colon
		}
		end := endOfValue(raw, i)
		each(name, raw[i:end:end])
		if i = skipSpace(raw, end); i < len(raw) && raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return nil
}

func skipSpace(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\t' || raw[i] == '\n' || raw[i] == '\r') {
		i++
	}
	return min(i, len(raw))
}

// endOfValue returns where the JSON value ends that begins at i.
func endOfValue(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; i < len(raw) && raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return min(i+1, len(raw))
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // behind a number or a word
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ':', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return len(raw)
}

// unquote returns what a JSON string says.
func unquote(raw []byte) (s string, err error) {
	if n := len(raw); n >= 2 && raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw[1 : n-1]), nil
	}
	err = json.Unmarshal(raw, &s)
	return s, err
}

// get returns the value of a member, nil if there is none or it is null. Of several with one name the last counts.
func (o object) get(name string) json.RawMessage {
	for i := len(o) - 1; i >= 0; i-- {
		if o[i].name == name {
			if string(o[i].value) == "null" {
				return nil
			}
			return o[i].value
		}
	}
	return nil
}

// with returns a copy in which the member has this value: in its place, or at the end if it is new.
func (o object) with(name string, value json.RawMessage) object {
	changed, found := make(object, 0, len(o)+1), false
	for _, m := range o {
		if m.name == name {
			if found {
				continue
			}
			m.value, found = value, true
		}
		changed = append(changed, m)
	}
	if !found {
		changed = append(changed, member{name, value})
	}
	return changed
}

// without returns a copy that has none of these members.
func (o object) without(names ...string) object {
	changed := make(object, 0, len(o))
next:
	for _, m := range o {
		for _, name := range names {
			if m.name == name {
				continue next
			}
		}
		changed = append(changed, m)
	}
	return changed
}

// text returns the string that a member holds.
func (o object) text(name string) (string, error) {
	raw := o.get(name)
	if raw == nil {
		return "", nil
	}
	return unquote(raw)
}

// encode returns the object as JSON, without spaces between its members.
func (o object) encode() json.RawMessage {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, quote(m.name)...)
		b = append(b, ':')
		b = append(b, m.value...)
	}
	return append(b, '}')
}

// quote returns s as a JSON string, with "<" as itself.
func quote(s string) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string can always be encoded
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
