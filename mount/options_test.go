package mount

import (
	"errors"
	"os"
	"reflect"
	"testing"
)

func TestParseOptions(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	tests := []struct {
		words string
		want  Flags
		err   error
	}{
		{words: ""},
		{words: "rw"},
		{words: "ro", want: Flags{ReadOnly: true}},
		{words: "ro,rw"},
		{words: "allow_remove", want: Flags{AllowRemove: true}},
		{words: "allow_remove=1", err: ErrOption},
		{words: "rw,ro", want: Flags{ReadOnly: true}},
		{words: "ro,allow_other,noxattr,noexec", want: Flags{ReadOnly: true, AllowOther: true, NoXattr: true, NoExec: true}},
		{words: "noexec,exec,nosuid,nodev"},
		{words: " ro , noxattr ", want: Flags{ReadOnly: true, NoXattr: true}},
		{words: "uid=1000,gid=0,umask=022", want: Flags{UID: n(1000), GID: n(0), Umask: n(0o22)}},
		{words: "umask=0777", want: Flags{Umask: n(0o777)}},
		{words: "defaults,auto,noauto,user,nofail,_netdev,x-systemd.automount,X-mount.mkdir=0755,comment=a b,noatime,,"},
		{words: "platform=linux/arm64/v8", want: Flags{Platform: "linux/arm64/v8"}},
		{words: "platform=a,ro,platform=b=c", want: Flags{Platform: "b=c", ReadOnly: true}},
		{words: "platform", err: ErrOption},
		{words: "platform=", err: ErrOption},
		{words: "r0", err: ErrOption},
		{words: "ro=1", err: ErrOption},
		{words: "=", err: ErrOption},
		{words: "uid", err: ErrOption},
		{words: "uid=", err: ErrOption},
		{words: "uid=root", err: ErrOption},
		{words: "uid=-1", err: ErrOption},
		{words: "uid=4294967295", err: ErrOption},
		{words: "gid=4294967296", err: ErrOption},
		{words: "umask=8", err: ErrOption},
		{words: "umask=1000", err: ErrOption},
		{words: "ro\x00", err: ErrOption},
	}
	for _, test := range tests {
		var got Flags
		err := got.ParseOptions(test.words)
		if !errors.Is(err, test.err) || (err != nil) != (test.err != nil) {
			t.Errorf("%q: error %v, want %v", test.words, err, test.err)
		}
		if err == nil && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: %+v, want %+v", test.words, got, test.want)
		}
	}
}

func TestParseOptionsOfRoot(t *testing.T) {
	var got Flags
	err := got.ParseOptions("dev,suid")
	if os.Geteuid() != 0 {
		if !errors.Is(err, ErrDenied) {
			t.Errorf("error %v, want %v", err, ErrDenied)
		}
		return
	}
	if err != nil || !got.Dev || !got.Suid {
		t.Errorf("%+v, error %v", got, err)
	}
}

func FuzzParseOptions(f *testing.F) {
	for _, words := range []string{"ro,uid=1,gid=2,umask=7", "x-a=,comment", ",,,=", "uid=99999999999999999999", "umask=-1"} {
		f.Add(words)
	}
	f.Fuzz(func(t *testing.T, words string) {
		var flags Flags
		err := flags.ParseOptions(words)
		if err != nil && !errors.Is(err, ErrOption) && !errors.Is(err, ErrDenied) {
			t.Errorf("%q: error %v without a condition", words, err)
		}
		if err == nil && flags.Umask != nil && *flags.Umask > 0o777 {
			t.Errorf("%q: umask %o", words, *flags.Umask)
		}
	})
}
