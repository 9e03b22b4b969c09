package images

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"
)

// Extreme is an image of what is as long, as large or as many as it can be: a name of 255 bytes, a path of 4,000, a directory of 20,000
// entries, a sparse file of 10 GB, times before 1970 and after 2038, and an empty layer and a layer that is there twice.
func Extreme() Image {
	deep := strings.Repeat(strings.Repeat("d", 199)+"/", 20) // 4,000 bytes with the slash
	many := []Entry{Dir("many")}
	for i := range 20000 {
		many = append(many, File(fmt.Sprintf("many/%05d", i), ""))
	}
	first := []Entry{
		Dir("etc"), File("etc/hosts", "first"),
		File(strings.Repeat("n", 255), "255"), File(deep[:len(deep)-1]+"e", "deep"),
		Sparse("sparse", 10e9, "headtail", Extent{0, 4}, Extent{10e9 - 4, 4}),
		File("old", "1").WithTime(time.Date(1955, 11, 5, 6, 0, 0, 123, time.UTC)),
		File("late", "2").WithTime(time.Date(2100, 1, 1, 0, 0, 0, 1, time.UTC)),
		Device("device", tar.TypeChar, 300, 70000), File("two", "links"), Link("a/first", "two"), Link("z", "a/first"),
	}
	twice := []Entry{Dir("etc"), File("etc/hosts", "twice"), Whiteout("old")}
	return Image{Layers: []Layer{
		{CreatedBy: "long and large", Entries: first}, {CreatedBy: "many", Entries: many}, {CreatedBy: "nothing"},
		{CreatedBy: "twice", Entries: twice}, {CreatedBy: "between", Entries: []Entry{File("old", "back")}}, {CreatedBy: "twice", Entries: twice},
	}}
}

// Layers is an image of n layers of one file each: 0000, 0001 and so on, and in every layer again the file top.
func Layers(n int) Image {
	var img Image
	for i := range n {
		name := fmt.Sprintf("%04d", i)
		img.Layers = append(img.Layers, Layer{CreatedBy: name, Entries: []Entry{File(name, name), File("top", name)}})
	}
	return img
}
