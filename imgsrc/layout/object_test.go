package layout

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

var someJSON = []string{
	`{}`, `[]`, `null`, `7`, `"x"`, " {\n\t\"a\" : 1 ,\r\n \"b\":[ ] } ", `{"a":{"a":[{"}":"]"}]},"a":"\"{","b":-1.5e3}`, `{"":null}`,
	`{"a\u0062\\":"\\","ä":"\ud800","x` + "\xff" + `":"` + "\xff" + `"}`, `[1, "a,b" ,{"c":[2,[]]},null,true ]`, `{"a":"\\\"","b":false}`,
	`[[],{}]`, `{"a":"` + strings.Repeat("x", 5000) + `"}`,
}

// FuzzParseObject compares with what encoding/json says.
func FuzzParseObject(f *testing.F) {
	for _, s := range someJSON {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) {
			return
		}
		var list []json.RawMessage
		listErr := json.Unmarshal(raw, &list)
		gotList, err := parseList(raw)
		if (err == nil) != (listErr == nil) || len(gotList) != len(list) {
			t.Fatalf("list %q, %v; want %q, %v", gotList, err, list, listErr)
		}
		for i := range list {
			if !bytes.Equal(list[i], gotList[i]) {
				t.Errorf("element %d: %q, want %q", i, gotList[i], list[i])
			}
		}

		got, err := parseObject(raw)
		dec := json.NewDecoder(bytes.NewReader(raw))
		if first, _ := dec.Token(); first != json.Delim('{') {
			if err == nil {
				t.Errorf("%q is an object: %q", raw, got)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range got {
			name, err := dec.Token()
			if err != nil || name != m.name {
				t.Fatalf("member %q, want %q, %v", m.name, name, err)
			}
			var value json.RawMessage
			if err := dec.Decode(&value); err != nil || !bytes.Equal(value, m.value) {
				t.Errorf("member %q: %q, want %q, %v", m.name, m.value, value, err)
			}
			var want string
			wantErr := json.Unmarshal(value, &want)
			if value[0] != 'n' { // text takes null for absent before it asks
				if s, err := unquote(m.value); (err == nil) != (wantErr == nil) || s != want {
					t.Errorf("%q says %q, %v; want %q, %v", m.value, s, err, want, wantErr)
				}
			}
		}
		if dec.More() {
			t.Errorf("%q has more than %d members", raw, len(got))
		}
	})
}
