package layout

import (
	"bytes"
	"encoding/json"
	"errors"
)

// An object is a JSON object as it was written: all members, known or not, in their order. Unlike the structs of
// encoding/json it takes names exactly, so that what is read and what is changed are the same member.
type object []member

type member struct {
	name  string
	value json.RawMessage
}

// parseObject reads raw, which must be a JSON value, as an object.
func parseObject(raw []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	o := object{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: name.(string)} // the decoder gives nothing else there
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		o = append(o, m)
	}
	return o, nil
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
	var s string
	raw := o.get(name)
	if raw == nil {
		return "", nil
	}
	err := json.Unmarshal(raw, &s)
	return s, err
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
